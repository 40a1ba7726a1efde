//! Sizes that a reader can take in: lines, functions, files.

use super::models::families;
use super::tree::Tree;
use super::{Finding, rust};

const MAX_COLUMNS: usize = 100;
const MAX_FUNCTION_LINES: usize = 70;
const MAX_FILE_LINES: usize = 600;
const MAX_MODEL_LINES: usize = 450;

/// Source lines have at most 100 columns.
pub fn line_length(tree: &Tree) -> Vec<Finding> {
    let mut findings = Vec::new();
    for file in &tree.files {
        if !["rs", "h", "cc", "cu", "cuh", "metal", "mjs", "py", "sh"].contains(&file.kind()) {
            continue;
        }
        for (i, line) in file.text.lines().enumerate() {
            let n_columns = line.chars().count();
            if n_columns > MAX_COLUMNS {
                let message = format!("{n_columns} columns; break the line at {MAX_COLUMNS}");
                findings.push(Finding::at(&file.path, i + 1, message));
            }
        }
    }
    findings
}

/// Rust functions outside tests have at most 70 lines, from `fn` to the closing brace.
pub fn function_length(tree: &Tree) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (file, scanned) in tree.rust() {
        for function in scanned.functions() {
            let rust::Function { name, first_line, last_line } = function;
            let n_lines = last_line - first_line + 1;
            if n_lines > MAX_FUNCTION_LINES && !scanned.is_test[first_line - 1] {
                let message = format!(
                    "`{name}` has {n_lines} lines; split it into parts of at most \
                     {MAX_FUNCTION_LINES}"
                );
                let finding = Finding::at(&file.path, first_line, message);
                findings.push(finding.measured(&name, n_lines));
            }
        }
    }
    findings
}

/// Rust files have at most 600 lines outside tests.
pub fn file_length(tree: &Tree) -> Vec<Finding> {
    longer_than(tree, MAX_FILE_LINES, |_| true, "split it by subject")
}

/// The file of a model family has at most 450 lines.
pub fn model_length(tree: &Tree) -> Vec<Finding> {
    let families = families(tree);
    let paths = families.iter().map(|(name, _)| format!("crates/models/src/{name}.rs"));
    let paths = paths.collect::<Vec<_>>();
    let advice = "a block is missing in `layers/`: move it there, with a test of its own";
    longer_than(tree, MAX_MODEL_LINES, |path| paths.iter().any(|p| p == path), advice)
}

fn longer_than(
    tree: &Tree,
    max_lines: usize,
    applies: impl Fn(&str) -> bool,
    advice: &str,
) -> Vec<Finding> {
    let files = tree.rust().filter(|(file, _)| applies(&file.path));
    let lengths = files.map(|(file, rust)| (file, rust.lines_outside_tests().count()));
    let long = lengths.filter(|(_, n_lines)| *n_lines > max_lines).map(|(file, n_lines)| {
        let message = format!("{n_lines} lines outside tests, {max_lines} at most: {advice}");
        Finding::at(&file.path, 1, message).measured("", n_lines)
    });
    long.collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tidy::lines;

    #[test]
    fn columns_are_characters() {
        let check = |path, text: &str, expected: &[usize]| {
            assert_eq!(lines(line_length, &[(path, text)]), expected, "{text}");
        };
        check("a.rs", &format!("//!\n{}\n", "ü".repeat(100)), &[]);
        check("a.rs", &format!("//!\n{}\n", "x".repeat(101)), &[2]);
        check("a.md", &"x".repeat(101), &[]);
    }

    #[test]
    fn a_function_of_71_lines_is_too_long_unless_it_is_a_test() {
        let check = |n_body_lines, prefix: &str, expected: &[usize]| {
            let text = format!("{prefix}fn f() {{\n{}}}\n", "x();\n".repeat(n_body_lines));
            assert_eq!(lines(function_length, &[("a.rs", &text)]), expected);
        };
        check(68, "", &[]);
        check(69, "", &[1]);
        check(69, "#[cfg(test)]\n", &[]);
        check(69, "fn g() {}\n", &[2]);
    }

    #[test]
    fn a_file_counts_without_its_tests() {
        let text = |n| format!("{}#[cfg(test)]\nmod tests {{\n{}}}\n", "x\n".repeat(n), "y\n");
        assert_eq!(lines(file_length, &[("a.rs", &text(600))]), []);
        assert_eq!(lines(file_length, &[("a.rs", &text(601))]), [1]);
    }

    #[test]
    fn only_the_files_of_families_are_held_to_450_lines() {
        let registry = "const FAMILIES: &[&F] = &[&qwen9::FAMILY];";
        let long = "x\n".repeat(451);
        let check = |path, text: &str, expected: &[usize]| {
            let files = [("crates/models/src/registry.rs", registry), (path, text)];
            assert_eq!(lines(model_length, &files), expected, "{path}");
        };
        check("crates/models/src/qwen9.rs", &long, &[1]);
        check("crates/models/src/qwen9.rs", &long[2..], &[]);
        check("crates/models/src/config.rs", &long, &[]);
    }
}
