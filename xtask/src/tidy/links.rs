//! Links between the project's documents lead somewhere.

use super::Finding;
use super::tree::Tree;

/// Relative links of Markdown files name a file or folder of the project.
pub fn links(tree: &Tree) -> Vec<Finding> {
    let mut findings = Vec::new();
    for file in tree.files.iter().filter(|file| file.kind() == "md") {
        for (i, line) in file.text.lines().enumerate() {
            for rest in line.split("](").skip(1) {
                let target = rest.split([')', '#']).next().unwrap_or_default();
                let is_elsewhere = target.is_empty() || target.contains("://");
                if !is_elsewhere && !exists(tree, &resolved(&file.path, target)) {
                    let message = format!("links to `{target}`, which is not there; mend the link");
                    findings.push(Finding::at(&file.path, i + 1, message));
                }
            }
        }
    }
    findings
}

fn resolved(from: &str, target: &str) -> String {
    let mut parts = from.split('/').collect::<Vec<_>>();
    parts.pop();
    for part in target.trim_end_matches('/').split('/') {
        match part {
            "." => {}
            ".." => drop(parts.pop()),
            _ => parts.push(part),
        }
    }
    parts.join("/")
}

fn exists(tree: &Tree, path: &str) -> bool {
    let folder = format!("{path}/");
    tree.files.iter().any(|file| file.path == path || file.path.starts_with(&folder))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tidy::lines;

    #[test]
    fn a_link_to_nothing_is_found() {
        let check = |text, expected: &[usize]| {
            let files = [("docs/a.md", text), ("b.md", ""), ("docs/c/d.md", "")];
            assert_eq!(lines(links, &files), expected, "{text}");
        };
        check("[b](../b.md) [c](c/) [d](./c/d.md#part)", &[]);
        check("[here](#part) [there](https://example.org/x.md)", &[]);
        check("\n[b](b.md)", &[2]);
        check("[b](../b.md) [e](c/e.md)", &[1]);
    }
}
