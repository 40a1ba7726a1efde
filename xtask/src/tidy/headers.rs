//! Every source file begins by saying what it is.

use super::Finding;
use super::tree::{File, Tree};

/// `//!` in Rust, a comment in C++, CUDA, Metal, JavaScript and shell, a docstring or comment in
/// Python.
pub fn header(tree: &Tree) -> Vec<Finding> {
    tree.files.iter().filter_map(missing).collect()
}

fn missing(file: &File) -> Option<Finding> {
    let starts: &[&str] = match file.kind() {
        "rs" => &["//!"],
        "h" | "cc" | "cu" | "cuh" | "metal" | "mjs" => &["//", "/*"],
        "py" => &["\"\"\"", "r\"\"\"", "#"],
        "sh" => &["#"],
        _ => return None,
    };
    let mut lines = file.text.lines().enumerate().filter(|(_, line)| !line.starts_with("#!/"));
    let (i, first) = lines.next()?; // an empty file has nothing to say
    if starts.iter().any(|start| first.starts_with(start)) {
        return None;
    }
    let message =
        format!("begins without a header; say in {} what the file is and why it exists", starts[0]);
    Some(Finding::at(&file.path, i + 1, message))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tidy::lines;

    #[test]
    fn a_file_without_header_is_found() {
        let check = |path, text, expected: &[usize]| {
            assert_eq!(lines(header, &[(path, text)]), expected, "{path}: {text}");
        };
        check("a.rs", "//! What.\n", &[]);
        check("a.rs", "// What.\n", &[1]);
        check("a.rs", "use x;\n", &[1]);
        check("a.cc", "// What.\n", &[]);
        check("a.h", "#pragma once\n// What.\n", &[1]);
        check("a.py", "\"\"\"What.\"\"\"\n", &[]);
        check("a.py", "#!/usr/bin/env python3\nimport os\n", &[2]);
        check("__init__.py", "", &[]);
        check(".ci/run", "#!/usr/bin/env bash\n# What.\n", &[]);
        check(".ci/run", "#!/usr/bin/env bash\nset -e\n", &[2]);
        check("a.mjs", "// What.\n", &[]);
        check("a.mjs", "import x;\n", &[1]);
        check("a.json", "{}", &[]);
    }
}
