//! Tests run, always, and do not wait for time to pass.

use super::Finding;
use super::rust::{line_of, words};
use super::tree::Tree;

/// Attributes that keep a test from saying what it should.
const ATTRIBUTES: &[(&str, &str)] = &[
    ("ignore", "a test that does not run is none; make it run, or remove it"),
    ("should_panic", "any panic passes; check the error, or catch the panic and check it"),
];

/// No test is ignored, none passes by a panic.
pub fn attributes(tree: &Tree) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (file, rust) in tree.rust() {
        for (name, advice) in ATTRIBUTES {
            for start in words(&rust.code, name) {
                let before = rust.code[..start].trim_end();
                if before.ends_with("#[") || before.ends_with(',') && is_attribute(before) {
                    let message = format!("`#[{name}]`: {advice}");
                    findings.push(Finding::at(&file.path, line_of(&rust.code, start), message));
                }
            }
        }
    }
    findings
}

/// Whether the last line of `before` is inside `#[cfg_attr(..`.
fn is_attribute(before: &str) -> bool {
    before.rfind("#[").is_some_and(|at| before[at..].starts_with("#[cfg_attr("))
        && !before[before.rfind("#[").unwrap_or(0)..].contains(']')
}

/// No test sleeps.
pub fn sleeps(tree: &Tree) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (file, rust) in tree.rust() {
        for start in words(&rust.code, "sleep") {
            let line = line_of(&rust.code, start);
            let is_called = rust.code[start + "sleep".len()..].trim_start().starts_with('(');
            let is_named = is_called || rust.code[..start].ends_with("::");
            if is_named && rust.is_test.get(line - 1) == Some(&true) {
                let message = "a test that sleeps is slow or flaky; wait for the event instead";
                findings.push(Finding::at(&file.path, line, message));
            }
        }
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tidy::lines;

    #[test]
    fn tests_that_do_not_run_or_pass_by_panics_are_found() {
        let check = |text, expected: &[usize]| {
            assert_eq!(lines(attributes, &[("a.rs", text)]), expected, "{text}");
        };
        check("#[test]\n#[ignore]\nfn a() {}\n", &[2]);
        check("#[test]\n#[ignore = \"slow\"]\nfn a() {}\n", &[2]);
        check("#[cfg_attr(miri, ignore)]\nfn a() {}\n", &[1]);
        check("#[should_panic(expected = \"x\")]\nfn a() {}\n", &[1]);
        check("let (a, ignore) = b; // #[ignore]\n", &[]);
    }

    #[test]
    fn a_sleep_is_found_in_tests_only() {
        let sleep = "fn a() {\n    std::thread::sleep(d);\n}\n";
        assert_eq!(lines(sleeps, &[("crates/a/src/b.rs", sleep)]), []);
        assert_eq!(lines(sleeps, &[("crates/a/tests/b.rs", sleep)]), [2]);
        let in_tests = format!("#[cfg(test)]\nmod tests {{\n{sleep}}}\n");
        assert_eq!(lines(sleeps, &[("crates/a/src/b.rs", &in_tests)]), [4]);
    }
}
