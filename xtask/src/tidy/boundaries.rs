//! What crates may reach: dependencies point one way, and pure crates know no world.

use super::Finding;
use super::rust::{is_ident, item_end, line_of};
use super::tree::Tree;
use crate::cargo;

/// No MLX, async run time, file, network, thread, clock or environment.
const PURE: &[&str] = &["protocol", "text", "grammar", "kvcache", "scheduler"];

/// What the sources of pure crates do not use, outside tests.
const WORLD: &[&str] =
    &["fs", "net", "thread", "env", "process", "Instant", "SystemTime", "stdin", "stdout"];

/// Crate, and what it must not reach: (name, why).
const FORBIDDEN: &[(&str, &str, &str)] = &[
    ("cli", "mlx-sys", "a fault of the device must not end the process the user talks to"),
    ("server", "mlx-sys", "a fault of the device must not end the server"),
    ("hub", "mlx-sys", "models are listed and checked without MLX"),
    ("kvstore", "mlx-sys", "the command line looks into the cache's files without MLX"),
    ("kvstore", "tokio", "its callers bring the threads"),
    ("grammar", "tokenizers", "it reads what tokens spell, and never cuts text into them"),
    ("protocol", "tokenizers", "the protocol carries token ids, never text"),
    ("scheduler", "kvcache", "the scheduler asks its owner, and knows no cache"),
    ("models", "kvcache", "models know nothing of the cache"),
    ("models", "scheduler", "models know nothing of the scheduler"),
    ("kernels", "models", "kernels know arrays, not models"),
    ("kernels", "kvcache", "kernels know nothing of the cache"),
    ("kernels", "scheduler", "kernels know nothing of the scheduler"),
    ("mlx", "kernels", "MLX's bindings know no kernels of ours"),
    ("mlx", "models", "MLX's bindings know no models"),
];

/// The sources of pure crates use nothing of the world.
pub fn pure_sources(tree: &Tree) -> Vec<Finding> {
    let mut findings = Vec::new();
    let is_pure = |path: &str| PURE.iter().any(|c| path.starts_with(&format!("crates/{c}/src/")));
    for (file, rust) in tree.rust().filter(|(file, _)| is_pure(&file.path)) {
        for (start, _) in rust.code.match_indices("std::") {
            let line = line_of(&rust.code, start);
            let used = used_names(&rust.code, start + "std::".len());
            let found = used.into_iter().find(|name| WORLD.contains(name));
            if let Some(name) = found.filter(|_| !rust.is_test[line - 1]) {
                let message = format!("a pure crate does not use `{name}`; take it as an argument");
                findings.push(Finding::at(&file.path, line, message));
            }
        }
    }
    findings
}

/// The names of the path, or of the braced group, that goes on at `start`.
fn used_names(code: &str, start: usize) -> Vec<&str> {
    let in_path = |c: char| is_ident(c) || c == ':';
    let path_length = code[start..].find(|c| !in_path(c)).unwrap_or(code.len() - start);
    let path_end = start + path_length;
    let is_group = code[path_end..].starts_with('{');
    let end = if is_group { item_end(code, path_end) } else { path_end };
    code[start..end].split(|c: char| !is_ident(c)).filter(|name| !name.is_empty()).collect()
}

/// No crate reaches what it must not, by the dependencies that cargo resolves.
pub fn dependencies(tree: &Tree) -> Vec<Finding> {
    let crates = tree.crates().filter_map(|path| path.strip_prefix("crates/"));
    crates.flat_map(|name| edges(tree, name)).collect()
}

fn edges(tree: &Tree, name: &str) -> Vec<Finding> {
    let forbidden = forbidden_for(name);
    if forbidden.is_empty() {
        return Vec::new();
    }
    let args = ["tree", "--offline", "--edges", "normal", "--prefix", "none", "--package", name];
    let manifest = format!("crates/{name}/Cargo.toml");
    match cargo::command().current_dir(&tree.root).args(args).output() {
        Ok(output) if output.status.success() => {
            reached(&manifest, &String::from_utf8_lossy(&output.stdout), &forbidden)
        }
        Ok(output) => {
            let error = String::from_utf8_lossy(&output.stderr);
            let message = format!("`cargo tree` fails; run `cargo fetch` first. It says: {error}");
            vec![Finding::at(&manifest, 1, message)]
        }
        Err(e) => vec![Finding::at(&manifest, 1, format!("cannot start cargo: {e}"))],
    }
}

fn forbidden_for(name: &str) -> Vec<(&'static str, &'static str)> {
    let own = FORBIDDEN.iter().filter(|(from, _, _)| *from == name);
    let mut list = own.map(|(_, to, why)| (*to, *why)).collect::<Vec<_>>();
    if PURE.contains(&name) {
        list.extend([("mlx-sys", "the crate is pure"), ("tokio", "the crate is pure")]);
    }
    list
}

/// Which of `forbidden` the output of `cargo tree` names.
fn reached(manifest: &str, cargo_tree: &str, forbidden: &[(&str, &str)]) -> Vec<Finding> {
    let names = cargo_tree.lines().filter_map(|line| line.split(' ').next()).collect::<Vec<_>>();
    let found = forbidden.iter().filter(|(to, _)| names.contains(to));
    let findings = found.map(|(to, why)| {
        let message =
            format!("reaches `{to}`, and must not: {why}. `cargo tree -i {to}` shows how");
        Finding::at(manifest, 1, message)
    });
    findings.collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tidy::lines;

    #[test]
    fn the_world_is_found_in_pure_crates() {
        let check = |path, text, expected: &[usize]| {
            assert_eq!(lines(pure_sources, &[(path, text)]), expected, "{path}: {text}");
        };
        let pure = "crates/text/src/a.rs";
        check(pure, "use std::fmt;\nuse std::fs;\n", &[2]);
        check(pure, "use std::{\n    fmt, fs::File,\n};\n", &[1]);
        check(pure, "let t = std::time::Instant::now();\n", &[1]);
        check(pure, "use std::time::{Duration, SystemTime};\n", &[1]);
        check(pure, "use std::time::Duration;\nuse std::{fmt};\nstruct fs;\n", &[]);
        check(pure, "#[cfg(test)]\nmod tests {\n    use std::fs;\n}\n", &[]);
        check(pure, "// not std::fs\n", &[]);
        check("crates/hub/src/a.rs", "use std::fs;\n", &[]);
        check("crates/text/tests/a.rs", "use std::fs;\n", &[]);
    }

    #[test]
    fn a_forbidden_dependency_is_found_in_cargos_list() {
        let check = |name, list, expected: usize| {
            assert_eq!(reached("Cargo.toml", list, &forbidden_for(name)).len(), expected, "{name}");
        };
        check("cli", "cli v0.1.0\nmlx v0.1.0\nmlx-sys v0.1.0\n", 1);
        check("cli", "cli v0.1.0\nmlx-sys-like v0.1.0\ntokio v1.0.0\n", 0);
        check("text", "text v0.1.0\ntokio v1.0.0 (*)\n", 1);
        check("protocol", "protocol v0.1.0\ntokenizers v0.22.2\ntokio v1.0.0\n", 2);
        check("runner", "runner v0.1.0\nmlx-sys v0.1.0\n", 0);
    }

    #[test]
    fn what_cargo_cannot_resolve_is_a_finding() {
        let tree = Tree::of(&[("crates/cli/Cargo.toml", "")]);
        let root = std::env::temp_dir();
        let findings = edges(&Tree { root, files: tree.files }, "cli");
        assert_eq!(findings.len(), 1, "{findings:?}");
        assert!(findings[0].message.contains("`cargo tree` fails"), "{findings:?}");
    }
}
