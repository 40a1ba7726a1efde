//! The store: finds models by argument and lists what is there.

use std::env;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use crate::environment::Environment;
use crate::error::{FolderProblem, HubError};
use crate::folder::ModelFolder;
use crate::hf_cache::{Cached, HfCache};
use crate::name::{ModelName, ShapeName};
use crate::pull::{Place, PullOptions, Puller, STAGING, has_parts, staging_of};

/// The name of the bundled model.
pub const DEMO: &str = "demo";

/// How alike (Jaro-Winkler, 0 to 1) a name must be to be suggested.
const MIN_LIKENESS: f64 = 0.75;

/// Where models are looked for.
#[derive(Debug, Clone)]
pub struct Hub {
    models_dir: PathBuf,
    demo_dirs: Vec<PathBuf>,
    cache: HfCache,
}

/// What a MODEL argument means.
#[derive(Debug, Clone)]
pub enum Model {
    /// A folder on disk.
    Folder {
        /// The name to show: the argument, or the folder's own name.
        name: String,
        /// The checked folder.
        folder: ModelFolder,
    },
    /// Random weights in a known shape.
    Shape(ShapeName),
}

/// One line of the list.
#[derive(Debug)]
pub struct Entry {
    /// The name that selects it.
    pub name: String,
    /// Its folder.
    pub path: PathBuf,
    /// In which of the places that is.
    pub place: Place,
    /// When its config was last written.
    pub modified: Option<SystemTime>,
    /// The checked folder, or why it cannot be loaded.
    pub folder: Result<ModelFolder, HubError>,
}

/// Where Offshoot keeps its data: `OFFSHOOT_HOME`, else the platform's data folder.
pub fn data_dir() -> Result<PathBuf, HubError> {
    match env::var_os("OFFSHOOT_HOME").filter(|home| !home.is_empty()) {
        Some(home) => Ok(PathBuf::from(home)),
        None => dirs::data_dir().map(|dir| dir.join("offshoot")).ok_or(HubError::NoDataDir),
    }
}

/// Where runners keep what the prefix cache has on disk: `cache` in the data folder.
pub fn cache_dir() -> Result<PathBuf, HubError> {
    Ok(data_dir()?.join("cache"))
}

impl Hub {
    /// The store under a data folder, with the places where the demo may be, best first.
    pub fn new(data_dir: &Path, demo_dirs: Vec<PathBuf>) -> Self {
        Self { models_dir: data_dir.join("models"), demo_dirs, cache: HfCache::default() }
    }

    /// The same, with the models of the Hugging Face tools.
    pub fn with_cache(self, cache: HfCache) -> Self {
        Self { cache, ..self }
    }

    /// The user's store and cache. The demo is beside the executable, in its prefix, or in the
    /// source tree.
    pub fn of_user() -> Result<Self, HubError> {
        let mut demo_dirs = Vec::new();
        if let Some(bin) = env::current_exe().ok().as_deref().and_then(Path::parent) {
            demo_dirs.push(bin.join("models").join(DEMO));
            demo_dirs.push(bin.join("../share/offshoot/models").join(DEMO));
        }
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models");
        demo_dirs.push(source.join(DEMO));
        Ok(Self::new(&data_dir()?, demo_dirs).with_cache(Environment::cache_of_process()))
    }

    /// A way to bring models into this store.
    pub fn puller<'a>(&'a self, environment: &'a Environment, options: PullOptions) -> Puller<'a> {
        Puller { models_dir: &self.models_dir, environment, options }
    }

    /// The cache of the Hugging Face tools.
    pub(crate) fn cache(&self) -> &HfCache {
        &self.cache
    }

    /// In which of the places a folder is.
    pub fn place(&self, folder: &ModelFolder) -> Place {
        let is_below =
            |dir: &Path| dir.canonicalize().is_ok_and(|dir| folder.path().starts_with(dir));
        if is_below(&self.models_dir) {
            Place::Store
        } else if self.cache.root().is_some_and(is_below) {
            Place::HfCache
        } else if self.demo_dir().is_some_and(is_below) {
            Place::Bundled
        } else {
            Place::Elsewhere
        }
    }

    /// Where named models are kept. Need not exist.
    pub fn models_dir(&self) -> &Path {
        &self.models_dir
    }

    /// Finds what an argument means: a shape, an explicit path (it begins with `.`, `/` or `~/`,
    /// or is absolute), the demo, a name in the store, or a folder below the current one.
    pub fn resolve(&self, argument: &str) -> Result<Model, HubError> {
        if let Some(rest) = argument.strip_prefix(ShapeName::PREFIX) {
            return ShapeName::parse(rest).map(Model::Shape);
        }
        if let Some(c) = argument.chars().find(|c| c.is_control()) {
            let reason = format!("it holds the control character {c:?}");
            return Err(HubError::InvalidName { name: argument.to_owned(), reason });
        }
        if let Some(path) = explicit_path(argument) {
            return open_path(&path);
        }
        let name = ModelName::parse(argument);
        if let Ok(name) = &name
            && let Some(model) = self.named(name)
        {
            return model;
        }
        let path = Path::new(argument);
        if !argument.is_empty() && path.exists() {
            return open_path(path);
        }
        Err(self.unknown(&name?))
    }

    /// Finds what a name means, never a path: the demo, or a model of the store or of the Hugging
    /// Face cache.
    pub fn resolve_name(&self, name: &ModelName) -> Result<Model, HubError> {
        self.named(name).unwrap_or_else(|| Err(self.unknown(name)))
    }

    fn named(&self, name: &ModelName) -> Option<Result<Model, HubError>> {
        if name.as_str() == DEMO {
            return Some(self.demo());
        }
        let path = self.models_dir.join(name.as_str());
        if path.is_dir() {
            let model = |folder| Model::Folder { name: name.to_string(), folder };
            return Some(ModelFolder::open(&path).map(model));
        }
        let Cached { name, path, .. } = self.cache.find(name)?;
        Some(match ModelFolder::open(&path) {
            Ok(folder) => Ok(Model::Folder { name, folder }),
            // Another tool has begun with it; a pull brings the rest.
            Err(HubError::Folder {
                problem: FolderProblem::MissingShards { .. } | FolderProblem::NoWeights,
                ..
            }) => Err(HubError::Incomplete { name }),
            Err(error) => Err(error),
        })
    }

    /// Nothing answers to a name; a download of it may have begun.
    pub(crate) fn unknown(&self, name: &ModelName) -> HubError {
        if has_parts(&staging_of(&self.models_dir, name)) {
            return HubError::Incomplete { name: name.to_string() };
        }
        HubError::UnknownModel { nearest: self.nearest(name.as_str()), name: name.to_string() }
    }

    /// Everything there is: the demo, then by name the store, downloads that are not complete, and
    /// what the Hugging Face cache has beside.
    pub fn list(&self) -> Result<Vec<Entry>, HubError> {
        let demo = self.demo_dir().map(|path| entry(DEMO.to_owned(), path, Place::Bundled));
        let mut entries: Vec<_> = demo.into_iter().collect();
        let stored = self.stored()?;
        let has = |name: &str| stored.iter().any(|(stored, _)| stored == name);
        let begun = in_folder(&self.models_dir.join(STAGING))?;
        let begun = begun.into_iter().filter(|(name, path)| !has(name) && has_parts(path));
        let cached = self.cache.models().into_iter().filter(|cached| !has(&cached.name));
        entries.extend(stored.iter().map(|(name, path)| entry(name.clone(), path, Place::Store)));
        entries.extend(begun.map(|(name, path)| Entry {
            folder: Err(HubError::Incomplete { name: name.clone() }),
            name,
            path,
            place: Place::Store,
            modified: None,
        }));
        entries.extend(cached.map(|cached| entry(cached.name, &cached.path, Place::HfCache)));
        Ok(entries)
    }

    fn demo_dir(&self) -> Option<&Path> {
        self.demo_dirs.iter().map(PathBuf::as_path).find(|dir| dir.is_dir())
    }

    fn demo(&self) -> Result<Model, HubError> {
        let dir =
            self.demo_dir().ok_or_else(|| HubError::NoDemo { searched: self.demo_dirs.clone() })?;
        Ok(Model::Folder { name: DEMO.to_owned(), folder: ModelFolder::open(dir)? })
    }

    fn stored(&self) -> Result<Vec<(String, PathBuf)>, HubError> {
        in_folder(&self.models_dir)
    }

    fn nearest(&self, name: &str) -> Option<String> {
        let wanted = name.to_lowercase();
        let likeness = |candidate: &str| {
            let candidate = candidate.to_lowercase();
            // The organisation is what people leave out.
            let bare = candidate.rsplit('/').next().unwrap_or_default();
            strsim::jaro_winkler(&wanted, &candidate).max(strsim::jaro_winkler(&wanted, bare))
        };
        let stored = self.stored().ok()?.into_iter().map(|(name, _)| name);
        let cached = self.cache.models().into_iter().map(|cached| cached.name);
        let names =
            stored.chain(cached).chain([DEMO.to_owned()]).map(|name| (likeness(&name), name));
        let best = names.max_by(|(a, _), (b, _)| a.total_cmp(b))?;
        (best.0 >= MIN_LIKENESS).then_some(best.1)
    }
}

impl Model {
    /// The name to show.
    pub fn name(&self) -> String {
        match self {
            Self::Folder { name, .. } => name.clone(),
            Self::Shape(shape) => {
                let quantization = shape.quantization.as_str();
                format!("{}{}:{quantization}", ShapeName::PREFIX, shape.name)
            }
        }
    }
}

fn explicit_path(argument: &str) -> Option<PathBuf> {
    if let Some(rest) = argument.strip_prefix("~/") {
        return dirs::home_dir().map(|home| home.join(rest));
    }
    let path = Path::new(argument);
    (argument.starts_with('.') || path.is_absolute()).then(|| path.to_owned())
}

fn open_path(path: &Path) -> Result<Model, HubError> {
    let folder = ModelFolder::open(path)?;
    let name = folder.path().file_name().unwrap_or_default().to_string_lossy().into_owned();
    Ok(Model::Folder { name, folder })
}

fn entry(name: String, path: &Path, place: Place) -> Entry {
    let modified = path.join("config.json").metadata().and_then(|meta| meta.modified()).ok();
    Entry { name, path: path.to_owned(), place, modified, folder: ModelFolder::open(path) }
}

/// Names and folders of models: a folder with files is a model, one with only folders an
/// organisation.
fn in_folder(dir: &Path) -> Result<Vec<(String, PathBuf)>, HubError> {
    let mut found = Vec::new();
    for (name, path) in folders(dir)? {
        let nested = if has_files(&path) { Vec::new() } else { folders(&path)? };
        if nested.is_empty() {
            found.push((name, path));
        } else {
            let nested = nested.into_iter();
            found.extend(nested.map(|(inner, path)| (format!("{name}/{inner}"), path)));
        }
    }
    found.retain(|(name, _)| ModelName::parse(name).is_ok());
    found.sort();
    Ok(found)
}

/// The folders in a folder; none when it does not exist.
fn folders(dir: &Path) -> Result<Vec<(String, PathBuf)>, HubError> {
    let failed = |source| HubError::Io { path: dir.to_owned(), source };
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(failed(e)),
    };
    let mut found = Vec::new();
    for entry in entries {
        let entry = entry.map_err(failed)?;
        if entry.path().is_dir()
            && let Ok(name) = entry.file_name().into_string()
        {
            found.push((name, entry.path()));
        }
    }
    Ok(found)
}

fn has_files(dir: &Path) -> bool {
    fs::read_dir(dir).is_ok_and(|entries| entries.flatten().any(|entry| entry.path().is_file()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn model(dir: &Path) {
        fs::create_dir_all(dir).unwrap();
        fs::write(dir.join("config.json"), r#"{"model_type": "qwen3"}"#).unwrap();
        fs::write(dir.join("model.safetensors"), "12345").unwrap();
    }

    fn store() -> (tempfile::TempDir, Hub) {
        let dir = tempfile::tempdir().unwrap();
        model(&dir.path().join("models/tiny"));
        model(&dir.path().join("models/acme/large-model"));
        fs::create_dir_all(dir.path().join("models/broken")).unwrap();
        model(&dir.path().join("demo"));
        model(&dir.path().join("outside"));
        let hub = Hub::new(dir.path(), vec![dir.path().join("absent"), dir.path().join("demo")]);
        (dir, hub)
    }

    #[test]
    fn names_shapes_paths_and_the_demo_resolve() {
        let (dir, hub) = store();
        let path = dir.path().join("outside").to_str().unwrap().to_owned();
        let cases = [
            ("tiny", "tiny"),
            ("acme/large-model", "acme/large-model"),
            ("demo", "demo"),
            ("shape:qwen3-8b:mxfp4", "shape:qwen3-8b:mxfp4"),
            (&path, "outside"),
        ];
        for (argument, name) in cases {
            assert_eq!(hub.resolve(argument).unwrap().name(), name);
        }
    }

    #[test]
    fn no_name_reaches_outside_the_store() {
        let (dir, hub) = store();
        for name in ["acme/../../outside", "tiny/../../outside", "a\0b", "", "tiny\n"] {
            let error = hub.resolve(name).unwrap_err();
            assert!(matches!(error, HubError::InvalidName { .. }), "{name:?}: {error}");
        }
        // An explicit path is a path, and says so.
        let up = format!("{}/models/../absent", dir.path().display());
        assert!(matches!(hub.resolve(&up), Err(HubError::NoSuchFolder { .. })));
    }

    #[test]
    fn an_unknown_name_suggests_the_nearest() {
        let (_dir, hub) = store();
        for (wrong, nearest) in [
            ("tinny", Some("tiny")),
            ("Demo", Some("demo")),
            ("large-model", Some("acme/large-model")),
            ("zzz", None),
        ] {
            match hub.resolve(wrong) {
                Err(HubError::UnknownModel { nearest: found, .. }) => {
                    assert_eq!(found.as_deref(), nearest, "{wrong}");
                }
                other => panic!("{wrong}: {other:?}"),
            }
        }
    }

    #[test]
    fn the_list_shows_broken_models_too() {
        let (dir, hub) = store();
        let list = hub.list().unwrap();
        let names: Vec<_> = list.iter().map(|e| (e.name.as_str(), e.folder.is_ok())).collect();
        let expected =
            [("demo", true), ("acme/large-model", true), ("broken", false), ("tiny", true)];
        assert_eq!(names, expected);
        assert!(list[0].modified.is_some());
        let empty = Hub::new(&dir.path().join("nothing"), vec![]);
        assert_eq!(empty.list().unwrap().len(), 0);
    }

    #[test]
    fn a_missing_demo_says_where_it_was_looked_for() {
        let (dir, _) = store();
        let hub = Hub::new(dir.path(), vec![dir.path().join("absent")]);
        let error = hub.resolve(DEMO).unwrap_err().to_string();
        assert!(error.contains("absent"), "{error}");
    }
}
