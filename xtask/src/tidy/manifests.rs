//! Manifests and the pin of MLX.

use super::Finding;
use super::tree::Tree;

const PIN: &str = "MLX_VERSION";

/// Every crate takes the workspace's lints, or states its own.
pub fn lints(tree: &Tree) -> Vec<Finding> {
    let missing = tree.crates().filter_map(|folder| {
        let path = format!("{folder}/Cargo.toml");
        let text = &tree.get(&path)?.text;
        let stated = text.contains("[lints.") || text.contains("[lints]\nworkspace = true");
        let message = "add `[lints]` with `workspace = true`, or lints of its own with the reason";
        (!stated).then(|| Finding::at(&path, 1, message))
    });
    missing.collect()
}

/// `MLX_VERSION` holds one version and wheels with their sha256.
pub fn mlx_version(tree: &Tree) -> Vec<Finding> {
    let Some(file) = tree.get(PIN) else {
        return vec![Finding::at(PIN, 1, "is missing: the build fetches the release it names")];
    };
    let (mut findings, mut n_versions, mut n_wheels) = (Vec::new(), 0, 0);
    for (i, line) in file.text.lines().enumerate() {
        let problem = match line.split_whitespace().collect::<Vec<_>>()[..] {
            [] => None,
            [first, ..] if first.starts_with('#') => None,
            ["version", version] => {
                n_versions += 1;
                (!is_version(version)).then_some("is no version: write `version X.Y.Z`")
            }
            ["wheel", _, _, hash] => {
                n_wheels += 1;
                (!is_sha256(hash)).then_some("ends in no sha256: 64 hexadecimal digits")
            }
            _ => Some("is neither `version X.Y.Z` nor `wheel PACKAGE PLATFORM SHA256`"),
        };
        findings.extend(problem.map(|message| Finding::at(PIN, i + 1, message)));
    }
    if n_versions != 1 || n_wheels == 0 {
        let message = format!("{n_versions} versions, {n_wheels} wheels; one and some are needed");
        findings.push(Finding::at(PIN, 1, message));
    }
    findings
}

fn is_version(text: &str) -> bool {
    let parts = text.split('.').collect::<Vec<_>>();
    parts.len() == 3 && parts.iter().all(|part| part.parse::<u32>().is_ok())
}

fn is_sha256(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tidy::lines;

    #[test]
    fn a_crate_without_lints_is_found() {
        let check = |text, expected: &[usize]| {
            assert_eq!(lines(lints, &[("crates/a/Cargo.toml", text)]), expected, "{text}");
        };
        check("[package]\n", &[1]);
        check("[package]\n[lints]\nworkspace = true\n", &[]);
        check("[package]\n[lints.rust]\nmissing_docs = \"warn\"\n", &[]);
        assert_eq!(lines(lints, &[("Cargo.toml", "[workspace]\n")]), []);
    }

    #[test]
    fn a_broken_pin_is_found() {
        let hash = "0f".repeat(32);
        let wheel = format!("wheel mlx-cpu win_arm64 {hash}");
        let check = |text: String, expected: &[usize]| {
            assert_eq!(lines(mlx_version, &[(PIN, &text)]), expected, "{text}");
        };
        check(format!("# pin\nversion 0.32.4\n{wheel}\n"), &[]);
        check(format!("version 0.32\n{wheel}\n"), &[1]);
        check(format!("version 0.32.4\n{wheel}0\n"), &[2]);
        check(format!("version 0.32.4\n{}\n", wheel.replace("0f", "0g")), &[2]);
        check(format!("version 0.32.4\nversion 0.32.5\n{wheel}\n"), &[1]);
        check("version 0.32.4\n".to_owned(), &[1]);
        check(format!("version 0.32.4\n{wheel}\nurl x\n"), &[3]);
        assert_eq!(lines(mlx_version, &[]), [1]);
    }
}
