//! Unsafe code has few doors, and each says why it is sound.

use super::Finding;
use super::rust::{Rust, item_end, line_of, words};
use super::tree::Tree;

const DOORS: &[&str] = &["crates/mlx-sys/", "crates/mlx/", "crates/kernels/"];
const BRIDGE: &str = "crates/mlx-sys/src/lib.rs";

/// `unsafe` stands only in the crates that are its doors.
pub fn doors(tree: &Tree) -> Vec<Finding> {
    let mut findings = Vec::new();
    let inside = |path: &str| DOORS.iter().any(|door| path.starts_with(door));
    for (file, rust) in tree.rust().filter(|(file, _)| !inside(&file.path)) {
        for start in words(&rust.code, "unsafe") {
            let message = "`unsafe` belongs into mlx-sys, mlx or kernels; use what they offer";
            findings.push(Finding::at(&file.path, line_of(&rust.code, start), message));
        }
    }
    findings
}

/// `// SAFETY:` stands before every unsafe block and unsafe impl.
pub fn comments(tree: &Tree) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (file, rust) in tree.rust() {
        for start in words(&rust.code, "unsafe") {
            let next = rust.code[start + "unsafe".len()..].trim_start();
            let line = line_of(&rust.code, start);
            if (next.starts_with('{') || next.starts_with("impl")) && !is_argued(rust, line) {
                let message = "say before this in `// SAFETY:` what makes it sound";
                findings.push(Finding::at(&file.path, line, message));
            }
        }
    }
    findings
}

/// Looks upward from `line` (from 1) through the statement and the comment above it.
fn is_argued(rust: &Rust, line: usize) -> bool {
    let code = rust.code.lines().collect::<Vec<_>>();
    let comments = rust.comments.lines().collect::<Vec<_>>();
    let argues = |i: &usize| comments[*i].contains("SAFETY:");
    let goes_on = |i: &usize| !code[*i].trim_end().ends_with([';', '{', '}', ',']);
    let is_blank = |i: &usize| code[*i].trim().is_empty() && comments[*i].trim().is_empty();
    let above = (0..line - 1).rev().take_while(|i| goes_on(i) && !is_blank(i));
    std::iter::once(line - 1).chain(above).any(|i| argues(&i))
}

/// Every function of the bridge to C++ returns `Result`: an exception through any other would end
/// the process.
pub fn bridge(tree: &Tree) -> Vec<Finding> {
    let Some(rust) = tree.get(BRIDGE).and_then(|file| file.rust.as_ref()) else {
        return Vec::new();
    };
    let code = &rust.code;
    let Some(start) = code.find("cxx::bridge") else {
        return vec![Finding::at(
            BRIDGE,
            1,
            "holds no `#[cxx::bridge]`; tidy must know the bridge",
        )];
    };
    let module = start + code[start..].find(']').map_or(0, |i| i + 1);
    let end = item_end(code, module);
    let functions = words(code, "fn").into_iter().filter(|at| (module..end).contains(at));
    let throwing = functions.filter(|at| {
        let signature = &code[*at..item_end(code, *at)];
        !signature.contains("-> Result<")
    });
    let findings = throwing.map(|at| {
        let message = "a bridge function returns `Result<..>`: else what C++ throws is fatal";
        Finding::at(BRIDGE, line_of(code, at), message)
    });
    findings.collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tidy::lines;

    #[test]
    fn unsafe_code_outside_its_doors_is_found() {
        let text = "//! On unsafe code.\nunsafe fn f() {}\n";
        assert_eq!(lines(doors, &[("crates/text/src/a.rs", text)]), [2]);
        assert_eq!(lines(doors, &[("crates/mlx/src/a.rs", text)]), []);
        let word = "#![forbid(unsafe_code)] // \"unsafe\"\nlet a = \"unsafe\";\n";
        assert_eq!(lines(doors, &[("crates/text/src/a.rs", word)]), []);
    }

    #[test]
    fn an_unsafe_block_without_argument_is_found() {
        let check = |text, expected: &[usize]| {
            assert_eq!(lines(comments, &[("a.rs", text)]), expected, "{text}");
        };
        check("// SAFETY: it is.\nlet a = unsafe { f() };\n", &[]);
        check("// SAFETY: it is,\n// truly.\nlet a =\n    unsafe { f() };\n", &[]);
        check("let a = unsafe { f() }; // SAFETY: it is.\n", &[]);
        check("let a = unsafe { f() };\n", &[1]);
        check("// SAFETY: b.\nlet b = 1;\nlet a = unsafe { f() };\n", &[3]);
        check("// SAFETY: far.\n\nunsafe impl Send for A {}\n", &[3]);
        check("// SAFETY: it is.\nunsafe impl Send for A {}\n", &[]);
        check("unsafe fn f() {}\n", &[]);
    }

    #[test]
    fn a_bridge_function_without_result_is_found() {
        let check = |function: &str, expected: &[usize]| {
            let text = format!("fn f() {{}}\n#[cxx::bridge]\nmod ffi {{\n{function}\n}}\n");
            assert_eq!(lines(bridge, &[(BRIDGE, &text)]), expected, "{function}");
        };
        check("unsafe fn a(x: *const A) -> Result<()>;", &[]);
        check("fn a(\nx: &A,\n) -> Result<\nB>;", &[]);
        check("fn a() -> usize;", &[4]);
        check("fn a();\nfn b() -> Result<()>;", &[4]);
        assert_eq!(lines(bridge, &[(BRIDGE, "fn a();")]), [1]);
    }
}
