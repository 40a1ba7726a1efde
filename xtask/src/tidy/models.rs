//! A model family is one file, one registry line, and goldens.

use super::Finding;
use super::rust::{is_ident, line_of};
use super::tree::Tree;

const REGISTRY: &str = "crates/models/src/registry.rs";

/// The families of the registry, with their lines.
pub fn families(tree: &Tree) -> Vec<(String, usize)> {
    let Some(file) = tree.get(REGISTRY) else {
        return Vec::new();
    };
    let table = file.text.find("const FAMILIES").unwrap_or(file.text.len());
    let end = file.text[table..].find("];").map_or(file.text.len(), |length| table + length);
    let found = file.text[table..end].match_indices("::FAMILY").filter_map(|(start, _)| {
        let start = table + start;
        let name = file.text[..start].rsplit(|c: char| !is_ident(c)).next()?;
        Some((name.to_owned(), line_of(&file.text, start)))
    });
    found.collect()
}

/// Folders with weights, `<family>_<case>`.
const QUANTIZED: &str = "quantized";

/// Every family of the registry has goldens, and every family of the goldens is in the registry.
pub fn goldens(tree: &Tree) -> Vec<Finding> {
    let known = families(tree);
    let cases = tree.files.iter().filter_map(|file| golden_case(&file.path));
    let (quantized, plain) = cases.partition::<Vec<_>, _>(|(folder, _)| *folder == QUANTIZED);
    let mut proven = plain.into_iter().map(|(family, _)| family).collect::<Vec<_>>();
    proven.dedup();
    let unproven = known.iter().filter(|(name, _)| !proven.contains(&name.as_str()));
    let unproven = unproven.map(|(name, line)| {
        let message = format!("family `{name}` has no `goldens/{name}/*/case.json`; make them");
        Finding::at(REGISTRY, *line, message)
    });
    let unknown = proven.iter().filter(|name| !known.iter().any(|(known, _)| known == *name));
    let unknown = unknown.map(|name| format!("goldens/{name}"));
    let is_of =
        |case: &str, name: &str| case.strip_prefix(name).is_some_and(|rest| rest.starts_with('_'));
    let strange = quantized.iter().filter(|(_, c)| !known.iter().any(|(name, _)| is_of(c, name)));
    let strange = strange.map(|(folder, case)| format!("goldens/{folder}/{case}"));
    let unknown = unknown.chain(strange).map(|path| {
        Finding::at(&path, 1, format!("is of no family in {REGISTRY}; add the family there"))
    });
    let mut findings = unproven.chain(unknown).collect::<Vec<_>>();
    if tree.get(REGISTRY).is_some() && known.is_empty() {
        findings.push(Finding::at(REGISTRY, 1, "no `const FAMILIES` found; tidy must know it"));
    }
    findings
}

/// `x` and `y` of `goldens/x/y/case.json`.
fn golden_case(path: &str) -> Option<(&str, &str)> {
    path.strip_prefix("goldens/")?.strip_suffix("/case.json")?.split_once('/')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(registry: &str, golden_paths: &[&str], expected: &[&str]) {
        let mut files = vec![(REGISTRY, registry)];
        files.extend(golden_paths.iter().map(|path| (*path, "{}")));
        let found = goldens(&Tree::of(&files));
        let found = found.iter().map(|f| format!("{}:{}", f.path, f.line)).collect::<Vec<_>>();
        assert_eq!(found, expected, "{registry} {golden_paths:?}");
    }

    #[test]
    fn registry_and_goldens_name_the_same_families() {
        let registry = "const FAMILIES: &[&F] = &[\n    &a::FAMILY,\n    &b::FAMILY,\n];\n\
                        let x = c::FAMILY;\n";
        let (a, b) = ("goldens/a/default/case.json", "goldens/b/default/case.json");
        check(registry, &[a, b, "goldens/README.md", "goldens/quantized/a_4/case.json"], &[]);
        check(registry, &[a, b, "goldens/quantized/c_4/case.json"], &["goldens/quantized/c_4:1"]);
        check(registry, &[a], &["crates/models/src/registry.rs:3"]);
        check(registry, &[a, b, "goldens/d/default/case.json"], &["goldens/d:1"]);
        check("fn other() {}", &[], &["crates/models/src/registry.rs:1"]);
    }
}
