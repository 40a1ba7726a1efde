//! The project's text files: what git knows or would add; without git, all but what `.gitignore`
//! names.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::rust::Rust;

/// The text files under `root`.
pub struct Tree {
    pub root: PathBuf,
    pub files: Vec<File>,
}

/// A text file.
pub struct File {
    /// From the root, with `/`.
    pub path: String,
    pub text: String,
    /// Present for `.rs`.
    pub rust: Option<Rust>,
}

impl File {
    fn new(path: &str, text: &str) -> Self {
        let rust = path.ends_with(".rs").then(|| Rust::scan(path, text));
        Self { path: path.to_owned(), text: text.to_owned(), rust }
    }

    /// The extension; `sh` also for scripts that have none.
    pub fn kind(&self) -> &str {
        let name = self.path.rsplit('/').next().unwrap_or_default();
        let is_script = self.text.lines().next().is_some_and(|line| {
            line.starts_with("#!") && (line.ends_with("bash") || line.ends_with("sh"))
        });
        match name.rsplit_once('.') {
            Some((stem, extension)) if !stem.is_empty() => extension,
            _ if is_script => "sh",
            _ => "",
        }
    }
}

impl Tree {
    /// Reads the text files under `root`.
    pub fn load(root: &Path) -> Result<Self, String> {
        let mut paths = git_files(root).map_or_else(|| walk(root), Ok)?;
        paths.sort();
        paths.dedup();
        let files = paths.iter().filter_map(|path| {
            let text = String::from_utf8(fs::read(root.join(path)).ok()?).ok()?;
            (!text.contains('\0')).then(|| File::new(path, &text))
        });
        let mut tree = Self { root: root.to_owned(), files: files.collect() };
        tree.mark_test_modules();
        Ok(tree)
    }

    /// A tree of these (path, text) files.
    #[cfg(test)]
    pub fn of(files: &[(&str, &str)]) -> Self {
        let files = files.iter().map(|(path, text)| File::new(path, text)).collect();
        let mut tree = Self { root: PathBuf::new(), files };
        tree.mark_test_modules();
        tree
    }

    pub fn get(&self, path: &str) -> Option<&File> {
        self.files.iter().find(|file| file.path == path)
    }

    /// The Rust files, scanned.
    pub fn rust(&self) -> impl Iterator<Item = (&File, &Rust)> {
        self.files.iter().filter_map(|file| Some((file, file.rust.as_ref()?)))
    }

    /// The folders of all crates, as `crates/mlx`.
    pub fn crates(&self) -> impl Iterator<Item = &str> {
        self.files.iter().filter_map(|file| file.path.strip_suffix("/Cargo.toml"))
    }

    /// `#[cfg(test)] mod x;` makes the file of `x` a test.
    fn mark_test_modules(&mut self) {
        let mut test_paths = Vec::new();
        for (file, rust) in self.rust() {
            let (folder, name) = file.path.rsplit_once('/').unwrap_or(("", &file.path));
            let stem = name.trim_end_matches(".rs");
            for module in &rust.test_modules {
                test_paths.push(format!("{folder}/{module}.rs"));
                test_paths.push(format!("{folder}/{module}/mod.rs"));
                test_paths.push(format!("{folder}/{stem}/{module}.rs"));
            }
        }
        for file in &mut self.files {
            if let Some(rust) = file.rust.as_mut().filter(|_| test_paths.contains(&file.path)) {
                rust.is_test.fill(true);
            }
        }
    }
}

/// What git tracks or would add; `None` where there is no git or no repository.
fn git_files(root: &Path) -> Option<Vec<String>> {
    let mut git = Command::new("git");
    git.current_dir(root).args(["ls-files", "-z", "--cached", "--others", "--exclude-standard"]);
    let output = git.output().ok().filter(|output| output.status.success())?;
    let list = String::from_utf8(output.stdout).ok()?;
    let paths = list.split('\0').filter(|path| !path.is_empty()).map(str::to_owned);
    let paths = paths.collect::<Vec<_>>();
    (!paths.is_empty()).then_some(paths)
}

fn walk(root: &Path) -> Result<Vec<String>, String> {
    let ignored = fs::read_to_string(root.join(".gitignore")).unwrap_or_default();
    let mut ignored = ignored.lines().map(|l| l.trim_matches('/')).collect::<Vec<_>>();
    ignored.push(".git");
    let (mut folders, mut paths) = (vec![String::new()], Vec::new());
    while let Some(folder) = folders.pop() {
        let at = root.join(&folder);
        let entries = fs::read_dir(&at).map_err(|e| format!("{}: {e}", at.display()))?;
        for entry in entries.flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            let path = if folder.is_empty() { name.clone() } else { format!("{folder}/{name}") };
            match entry.file_type() {
                _ if ignored.contains(&name.as_str()) => {}
                Ok(kind) if kind.is_dir() => folders.push(path),
                Ok(kind) if kind.is_file() => paths.push(path),
                _ => {}
            }
        }
    }
    Ok(paths)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn git_and_the_walk_find_this_file() {
        let root = crate::cargo::root();
        let own = "xtask/src/tidy/tree.rs".to_owned();
        assert!(walk(&root).unwrap().contains(&own));
        assert!(Tree::load(&root).unwrap().get(&own).is_some());
    }

    #[test]
    fn a_script_without_extension_is_known_by_its_first_line() {
        assert_eq!(File::new(".ci/run", "#!/usr/bin/env bash\n").kind(), "sh");
        assert_eq!(File::new(".gitignore", "target\n").kind(), "");
        assert_eq!(File::new("a/b.py", "").kind(), "py");
    }

    #[test]
    fn the_file_of_a_test_module_is_a_test() {
        let tree = Tree::of(&[
            ("c/src/a.rs", "#[cfg(test)]\nmod a_fuzz;\n"),
            ("c/src/a_fuzz.rs", "fn f() {}\n"),
        ]);
        let rust = tree.get("c/src/a_fuzz.rs").and_then(|file| file.rust.as_ref()).unwrap();
        assert_eq!(rust.is_test, [true]);
    }
}
