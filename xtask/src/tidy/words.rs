//! Words that must not be in the project. The lists are put together from parts, so that this file
//! does not find itself.

use super::rust::{is_ident, line_of, words};
use super::tree::{File, Tree};
use super::{Finding, tree};

/// Notes to oneself: they block merging.
const MARKS: &[&str] = &[concat!("FIX", "ME"), concat!("TO", "DO"), concat!("XX", "X")];

/// Beginnings of paths that exist on one machine only.
const MACHINE_PATHS: &[&str] = &[
    concat!("/wo", "rk/"),
    concat!("/ro", "ot/"),
    concat!("/tm", "p/"),
    concat!("/ho", "me/"),
    concat!("/Us", "ers/"),
    concat!("C:\\Us", "ers\\"),
];

/// Which registry serves a package is the business of the machine that builds.
const REGISTRY_HOSTS: &[&str] = &[
    concat!("crates", ".io"),
    concat!("pypi", ".org"),
    concat!("pypi.", "nvidia.com"),
    concat!("python", "hosted.org"),
    concat!("npmjs", ".org"),
    concat!("proxy.", "golang.org"),
    concat!("conda.", "anaconda.org"),
    concat!("index-", "url"),
    concat!("trusted-", "host"),
];

/// In lower case: how a change came about, phrases that excuse unfinished work, and secrets.
const FORBIDDEN: &[&str] = &[
    concat!("co-", "worker"),
    concat!("work", "tree"),
    concat!("work", "place"),
    concat!("sub-", "agent task"),
    concat!("as an ", "ai "),
    concat!("language model ", "assistant"),
    concat!("generated with ", "claude"),
    concat!("co-authored", "-by:"),
    concat!("brief", ".md"),
    concat!("design", ".md"),
    concat!("style", ".md"),
    concat!("shared/", "reference"),
    concat!("in a real ", "implementation"),
    concat!("in production you ", "would"),
    concat!("left as an ", "exercise"),
    concat!("simplified ", "version of"),
    concat!("for ", "brevity"),
    concat!("private ", "key-----"),
];

/// Files whose words are not ours.
const FOREIGN: &[&str] = &["Cargo.lock", "LICENSE-APACHE", "LICENSE-MIT"];

/// Marks of unfinished work, in everything that people write by hand.
pub fn marks(tree: &Tree) -> Vec<Finding> {
    let by_hand = |file: &&File| {
        let kinds = ["rs", "h", "cc", "cu", "cuh", "metal", "mjs", "py", "sh", "md", "toml"];
        kinds.contains(&file.kind())
    };
    let mut findings = Vec::new();
    for file in own_files(tree).filter(by_hand) {
        for mark in MARKS {
            for start in words(&file.text, mark) {
                let message = format!("{mark}: finish it, or say without the mark what is absent");
                findings.push(Finding::at(&file.path, line_of(&file.text, start), message));
            }
        }
    }
    findings
}

/// Absolute paths of one machine.
pub fn machine_paths(tree: &Tree) -> Vec<Finding> {
    let is_absolute = |text: &str, start: usize| {
        let before = text[..start].chars().next_back();
        !before.is_some_and(|c| is_ident(c) || ".-/~*}>)$".contains(c))
    };
    let advice = "is a path of one machine; write a relative path, or ask the system for a folder";
    search(tree, MACHINE_PATHS, advice, |text| text.to_owned(), is_absolute)
}

/// Names of package registries' hosts and settings that choose one.
pub fn registry_hosts(tree: &Tree) -> Vec<Finding> {
    let advice = "chooses a package registry; leave that to the settings of cargo and pip";
    search(tree, REGISTRY_HOSTS, advice, str::to_ascii_lowercase, |_, _| true)
}

/// Phrases that have no place here.
pub fn forbidden(tree: &Tree) -> Vec<Finding> {
    let advice = "does not belong into the project; say what the project does, or nothing";
    search(tree, FORBIDDEN, advice, str::to_ascii_lowercase, |_, _| true)
}

fn search(
    tree: &Tree,
    list: &[&str],
    advice: &str,
    fold: impl Fn(&str) -> String,
    counts: impl Fn(&str, usize) -> bool,
) -> Vec<Finding> {
    let mut findings = Vec::new();
    for file in own_files(tree) {
        let text = fold(&file.text);
        for word in list {
            for (start, _) in text.match_indices(word).filter(|(start, _)| counts(&text, *start)) {
                let message = format!("`{word}` {advice}");
                findings.push(Finding::at(&file.path, line_of(&text, start), message));
            }
        }
    }
    findings
}

fn own_files(tree: &Tree) -> impl Iterator<Item = &tree::File> {
    tree.files.iter().filter(|file| !FOREIGN.contains(&file.path.as_str()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tidy::{Rule, lines};

    fn check(rule: Rule, path: &str, text: &str, expected: &[usize]) {
        assert_eq!(lines(rule, &[(path, text)]), expected, "{path}: {text}");
    }

    #[test]
    fn every_mark_is_found_as_a_word() {
        for mark in MARKS {
            check(marks, "a.md", &format!("a\n{mark}: b\n"), &[2]);
            check(marks, "a.md", &format!("a\nx{mark}S\n"), &[]);
            check(marks, "a.json", mark, &[]);
        }
    }

    #[test]
    fn every_machine_path_is_found_where_it_begins() {
        for path in MACHINE_PATHS {
            check(machine_paths, "a.rs", &format!("//!\n\"{path}x\"\n"), &[2]);
        }
        let in_a_longer_path = format!("a{} $HOME{0}x", MACHINE_PATHS[2]);
        check(machine_paths, "a.sh", &in_a_longer_path, &[]);
    }

    #[test]
    fn every_registry_and_forbidden_word_is_found_in_any_case() {
        for host in REGISTRY_HOSTS {
            check(registry_hosts, "a.toml", &format!("x\n{}", host.to_uppercase()), &[2]);
            check(registry_hosts, "Cargo.lock", host, &[]);
        }
        for word in FORBIDDEN {
            check(forbidden, "a.md", &format!("x\n{}", word.to_uppercase()), &[2]);
        }
        check(forbidden, "a.md", "work in its place", &[]);
    }
}
