//! `cargo xtask tidy`: the house rules that a program can check. One rule is one function from the
//! tree to findings; a finding says where and what to do. What was too large before its rule came
//! stands in `xtask/tidy.txt`, a list that may only shrink.

mod boundaries;
mod headers;
mod links;
mod manifests;
mod models;
mod ratchet;
mod rust;
mod sizes;
mod testing;
mod tree;
mod unsafety;
mod words;

use std::path::Path;

use tree::Tree;

/// Something that breaks a rule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    path: String,
    /// From 1.
    line: usize,
    /// What is too large, if a file has several such things; names it in `tidy.txt`.
    item: String,
    /// How large it is; 1 for what merely is there.
    size: usize,
    message: String,
}

impl Finding {
    fn at(path: &str, line: usize, message: impl Into<String>) -> Self {
        let (path, item, message) = (path.to_owned(), String::new(), message.into());
        Self { path, line, item, size: 1, message }
    }

    fn measured(mut self, item: &str, size: usize) -> Self {
        self.item = item.to_owned();
        self.size = size;
        self
    }
}

type Rule = fn(&Tree) -> Vec<Finding>;

const RULES: &[(&str, Rule)] = &[
    ("header", headers::header),
    ("line-length", sizes::line_length),
    ("function-length", sizes::function_length),
    ("file-length", sizes::file_length),
    ("model-length", sizes::model_length),
    ("mark", words::marks),
    ("machine-path", words::machine_paths),
    ("registry-host", words::registry_hosts),
    ("forbidden-word", words::forbidden),
    ("link", links::links),
    ("unsafe-door", unsafety::doors),
    ("safety-comment", unsafety::comments),
    ("bridge-result", unsafety::bridge),
    ("test-attribute", testing::attributes),
    ("test-sleep", testing::sleeps),
    ("pure-source", boundaries::pure_sources),
    ("dependency", boundaries::dependencies),
    ("crate-lints", manifests::lints),
    ("mlx-version", manifests::mlx_version),
    ("golden", models::goldens),
];

/// Checks the repository at `root`.
pub fn run(root: &Path) -> Result<(), String> {
    let tree = Tree::load(root)?;
    let found = RULES.iter().flat_map(|(name, rule)| {
        rule(&tree).into_iter().map(move |finding| (*name, finding)).collect::<Vec<_>>()
    });
    let findings = ratchet::apply(&tree, found.collect());
    for (rule, finding) in &findings {
        println!("{}:{}: {} [{rule}]", finding.path, finding.line, finding.message);
    }
    if findings.is_empty() {
        println!("tidy: {} files keep {} rules", tree.files.len(), RULES.len());
        return Ok(());
    }
    Err(format!("tidy: {} findings", findings.len()))
}

/// The lines at which `rule` finds something in these (path, text) files.
#[cfg(test)]
fn lines(rule: Rule, files: &[(&str, &str)]) -> Vec<usize> {
    rule(&Tree::of(files)).iter().map(|finding| finding.line).collect()
}
