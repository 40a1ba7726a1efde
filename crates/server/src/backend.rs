//! Which libmlx a runner loads: CPU, CUDA or Metal, by the hardware found.
//!
//! One runner binary serves every backend; the folder of the library is chosen at spawn and put
//! in front of the dynamic linker's search path. [`choose`] is a function of what was found
//! ([`Machine`], [`Places`]), so that every case can be tested anywhere.

use std::env;
use std::ffi::{OsStr, OsString};
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::str::FromStr;

/// The MLX version that the runner is built for, from the repository's pin.
pub fn mlx_version() -> &'static str {
    let lines = include_str!("../../../MLX_VERSION").lines();
    let version = lines.filter_map(|line| line.strip_prefix("version ")).next();
    version.expect("the pin holds a version line, as a test checks").trim()
}

const LIBRARY: &str = if cfg!(target_os = "macos") { "libmlx.dylib" } else { "libmlx.so" };
const SEARCH_PATH_VAR: &str =
    if cfg!(target_os = "macos") { "DYLD_LIBRARY_PATH" } else { "LD_LIBRARY_PATH" };

/// What computes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Backend {
    /// Any processor.
    Cpu,
    /// NVIDIA.
    Cuda,
    /// Apple silicon.
    Metal,
}

/// What the user asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Asked {
    /// The best that the hardware and the installed libraries allow.
    #[default]
    Auto,
    /// This one or an error.
    Exactly(Backend),
}

/// The hardware that matters for the choice.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Machine {
    /// Apple silicon with macOS.
    pub has_metal: bool,
    /// An NVIDIA device with its driver.
    pub has_nvidia: bool,
}

/// Where libraries may be.
#[derive(Debug, Clone, Default)]
pub struct Places {
    /// `OFFSHOOT_MLX_LIB`: a folder that holds libmlx.
    pub explicit: Option<PathBuf>,
    /// The executable's folder.
    pub exe_dir: Option<PathBuf>,
    /// Offshoot's data folder.
    pub data_dir: Option<PathBuf>,
    /// The linker's search path as inherited.
    pub search_path: Option<OsString>,
    /// Settings of the C library.
    pub glibc_tunables: Option<OsString>,
}

/// Where the library comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Library {
    /// This folder, put in front of the search path.
    Folder(PathBuf),
    /// This folder, already on the search path.
    OnSearchPath(PathBuf),
    /// The one that the runner was built with.
    RunnersOwn,
}

/// A backend with its library.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chosen {
    /// What will compute.
    pub backend: Backend,
    /// The library that does it.
    pub library: Library,
    /// Why this backend, in words.
    pub reason: String,
    /// What would make a better choice possible.
    pub hint: Option<String>,
    /// Variables to set for the runner.
    pub env: Vec<(OsString, OsString)>,
}

/// Why there is no choice.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BackendError {
    /// Not a backend.
    #[error("{0:?} is not a backend: use auto, cpu, cuda or metal")]
    Unknown(String),
    /// The asked-for backend cannot work on this system.
    #[error("this system cannot run the {0} backend")]
    Impossible(Backend),
    /// The asked-for backend's library is not installed.
    #[error("the MLX library for {backend} is not installed")]
    NotInstalled {
        /// What was asked for.
        backend: Backend,
        /// What installs it.
        install: String,
    },
    /// `OFFSHOOT_MLX_LIB` names a folder without a library.
    #[error("OFFSHOOT_MLX_LIB is {}, but there is no {LIBRARY} in it", .0.display())]
    NoLibraryIn(PathBuf),
}

impl BackendError {
    /// What to do about it.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::NotInstalled { install, .. } => Some(format!("install it: {install}")),
            Self::Impossible(_) => Some("use --backend auto".into()),
            Self::Unknown(_) | Self::NoLibraryIn(_) => None,
        }
    }
}

impl Backend {
    const ALL: [Self; 3] = [Self::Cpu, Self::Cuda, Self::Metal];

    /// The library that the runner is linked with serves this backend.
    const OWN: Self = if cfg!(all(target_os = "macos", target_arch = "aarch64")) {
        Self::Metal
    } else {
        Self::Cpu
    };

    /// As it is written in flags, folders and variables.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Cpu => "cpu",
            Self::Cuda => "cuda",
            Self::Metal => "metal",
        }
    }

    fn wheel(self) -> &'static str {
        match self {
            Self::Cpu => "mlx-cpu",
            Self::Cuda => "mlx-cuda-13",
            Self::Metal => "mlx-metal",
        }
    }
}

impl fmt::Display for Backend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Asked {
    type Err = BackendError;

    fn from_str(text: &str) -> Result<Self, BackendError> {
        if text == "auto" {
            return Ok(Self::Auto);
        }
        let backend = Backend::ALL.into_iter().find(|backend| backend.as_str() == text);
        backend.map(Self::Exactly).ok_or_else(|| BackendError::Unknown(text.to_owned()))
    }
}

impl Machine {
    /// Looks at this machine.
    pub fn detect() -> Self {
        let nvidia_signs = ["/dev/nvidiactl", "/usr/lib/wsl/lib/libcuda.so.1"];
        Self {
            has_metal: cfg!(all(target_os = "macos", target_arch = "aarch64")),
            has_nvidia: nvidia_signs.iter().any(|sign| Path::new(sign).exists()),
        }
    }

    fn best(self) -> (Backend, &'static str) {
        if self.has_metal {
            (Backend::Metal, "this is Apple silicon")
        } else if self.has_nvidia {
            (Backend::Cuda, "an NVIDIA device is present")
        } else {
            (Backend::Cpu, "no supported GPU was found")
        }
    }

    fn allows(self, backend: Backend) -> bool {
        match backend {
            Backend::Cpu => true,
            Backend::Cuda => cfg!(not(target_os = "macos")),
            Backend::Metal => self.has_metal,
        }
    }
}

impl Places {
    /// From the environment and the running executable.
    pub fn of_process(data_dir: Option<PathBuf>) -> Self {
        let exe = env::current_exe().ok();
        Self {
            explicit: env::var_os("OFFSHOOT_MLX_LIB").filter(|p| !p.is_empty()).map(PathBuf::from),
            exe_dir: exe.as_deref().and_then(Path::parent).map(Path::to_owned),
            data_dir,
            search_path: env::var_os(SEARCH_PATH_VAR).filter(|path| !path.is_empty()),
            glibc_tunables: env::var_os(GLIBC_TUNABLES.0).filter(|list| !list.is_empty()),
        }
    }

    /// The folder that `pip install --target` fills for a backend.
    fn install_dir(&self, backend: Backend) -> Option<PathBuf> {
        let data_dir = self.data_dir.as_ref()?;
        Some(data_dir.join("mlx").join(mlx_version()).join(backend.as_str()))
    }

    fn find(&self, backend: Backend) -> Result<Option<Library>, BackendError> {
        if let Some(folder) = &self.explicit {
            return match holds_library(folder) {
                true => Ok(Some(Library::Folder(folder.clone()))),
                false => Err(BackendError::NoLibraryIn(folder.clone())),
            };
        }
        let beside = self.exe_dir.as_ref().map(|dir| dir.join(format!("mlx-{backend}")));
        let installed = self.install_dir(backend);
        let candidates = [beside, installed].into_iter().flatten().map(|dir| dir.join("mlx/lib"));
        if let Some(folder) = candidates.into_iter().find(|folder| holds_library(folder)) {
            return Ok(Some(Library::Folder(folder)));
        }
        let search_path = self.search_path.as_deref().unwrap_or(OsStr::new(""));
        if let Some(folder) = env::split_paths(search_path).find(|folder| holds_library(folder)) {
            return Ok(Some(Library::OnSearchPath(folder)));
        }
        let own = backend == Backend::OWN || backend == Backend::Cpu;
        Ok(own.then_some(Library::RunnersOwn))
    }

    fn install_command(&self, backend: Backend) -> String {
        let target = self.install_dir(backend).unwrap_or_else(|| PathBuf::from("FOLDER"));
        format!(
            "python3 -m pip install --target '{}' {}=={}",
            target.display(),
            backend.wheel(),
            mlx_version()
        )
    }

    /// The search path with a library's folder, and what it needs from its wheel's neighbours, in
    /// front.
    fn search_path_with(&self, folder: &Path) -> Option<OsString> {
        let mut paths = vec![folder.to_owned()];
        if let Some(site) = folder.parent().and_then(Path::parent) {
            let vendor = fs::read_dir(site.join("nvidia")).into_iter().flatten().flatten();
            let mut vendor: Vec<_> = vendor.map(|entry| entry.path().join("lib")).collect();
            vendor.sort();
            vendor.push(site.join("mlx_cuda_13.libs"));
            paths.extend(vendor.into_iter().filter(|path| path.is_dir()));
        }
        paths.extend(self.search_path.iter().flat_map(env::split_paths));
        env::join_paths(paths).ok()
    }
}

fn holds_library(folder: &Path) -> bool {
    !folder.as_os_str().is_empty() && folder.join(LIBRARY).is_file()
}

/// How MLX's CUDA backend is set up.
const CUDA_SETTINGS: [(&str, &str); 4] = [
    // Products of f32 in f32: TF32 keeps 10 bits of the mantissa and misses references by 1e-3.
    ("MLX_ENABLE_TF32", "0"),
    // MLX ends the process when its cache of compiled graphs has missed twice its size in all.
    ("MLX_CUDA_GRAPH_CACHE_SIZE", "2000"),
    // The host needs longer for many graphs, and the device waits for the first of few. A third of
    // qwen3-30b-a3b in 4 bits on an H200, a step of 32 rows and the first token of a known prompt:
    // 3.1 and 4.5 ms with 1,000, 2.8 and 3.4 with 200.
    ("MLX_MAX_OPS_PER_BUFFER", "200"),
    // MLX ends a graph by the sizes of the arrays that its launches are given: a layer's pools of
    // blocks alone would end it, and a step would become a launch for each layer. Without a limit
    // a long pass would keep all of its intermediate arrays to its end.
    ("MLX_MAX_MB_PER_BUFFER", "20000"),
];

/// A step's graph is thousands of small allocations that live together, of which glibc hands out 7
/// of a size without a search unless told otherwise (2,474 and 2,816 tokens per second of 8 rows of
/// a third of qwen3-30b-a3b on an H200). A thread may keep 130 MB for that. Others take no notice.
const GLIBC_TUNABLES: (&str, &str) = ("GLIBC_TUNABLES", "glibc.malloc.tcache_count=4000");

/// Where the runner keeps the machine code of kernels.
const KERNELS_VAR: &str = "OFFSHOOT_KERNELS";

/// Chooses the backend and its library. What was asked for exactly is never replaced; `auto` falls
/// back to the CPU, with a hint that says what to install.
pub fn choose(asked: Asked, machine: Machine, places: &Places) -> Result<Chosen, BackendError> {
    let (backend, reason) = match asked {
        Asked::Exactly(backend) => (backend, "it was asked for"),
        Asked::Auto => machine.best(),
    };
    if !machine.allows(backend) {
        return Err(BackendError::Impossible(backend));
    }
    let install = || format!("install it: {}", places.install_command(backend));
    let (backend, library, reason, hint) = match places.find(backend)? {
        Some(library) => (backend, library, reason.to_owned(), None),
        None if asked == Asked::Auto => {
            let reason = format!("{reason}, but the MLX library for {backend} is not installed");
            let library = places.find(Backend::Cpu)?.unwrap_or(Library::RunnersOwn);
            (Backend::Cpu, library, reason, Some(install()))
        }
        None => {
            let install = places.install_command(backend);
            return Err(BackendError::NotInstalled { backend, install });
        }
    };
    let mut env = vec![("OFFSHOOT_BACKEND".into(), backend.as_str().into())];
    if backend == Backend::Cuda {
        env.extend(CUDA_SETTINGS.map(|(name, value)| (name.into(), value.into())));
        // Each of a model's kernels takes a part of a second to compile.
        env.extend(
            places.data_dir.iter().map(|dir| (KERNELS_VAR.into(), dir.join("kernels").into())),
        );
        let (name, value) = GLIBC_TUNABLES;
        // What is said twice holds as it is said last.
        let all = [OsStr::new(value)].into_iter().chain(places.glibc_tunables.as_deref());
        env.push((name.into(), all.collect::<Vec<_>>().join(OsStr::new(":"))));
    }
    if let Library::Folder(folder) = &library
        && let Some(search_path) = places.search_path_with(folder)
    {
        env.push((SEARCH_PATH_VAR.into(), search_path));
    }
    Ok(Chosen { backend, library, reason, hint, env })
}

#[cfg(test)]
mod tests {
    use super::*;

    const CPU: Machine = Machine { has_metal: false, has_nvidia: false };
    const NVIDIA: Machine = Machine { has_metal: false, has_nvidia: true };

    fn install(root: &Path, folder: &str) -> PathBuf {
        let lib = root.join(folder);
        fs::create_dir_all(&lib).unwrap();
        fs::write(lib.join(LIBRARY), "").unwrap();
        lib
    }

    fn places(root: &Path) -> Places {
        Places {
            exe_dir: Some(root.join("bin")),
            data_dir: Some(root.join("data")),
            ..Places::default()
        }
    }

    #[test]
    fn backends_are_named_as_in_the_flag() {
        assert_eq!("auto".parse(), Ok(Asked::Auto));
        assert_eq!("cuda".parse(), Ok(Asked::Exactly(Backend::Cuda)));
        let error = "rocm".parse::<Asked>().unwrap_err().to_string();
        assert!(error.contains("auto, cpu, cuda or metal"), "{error}");
    }

    #[test]
    fn the_pin_holds_one_version_number() {
        assert!(mlx_version().split('.').all(|part| part.parse::<u32>().is_ok()));
    }

    #[test]
    fn without_a_gpu_the_runners_own_library_is_used() {
        let root = tempfile::tempdir().unwrap();
        let chosen = choose(Asked::Auto, CPU, &places(root.path())).unwrap();
        assert_eq!((chosen.backend, chosen.library), (Backend::Cpu, Library::RunnersOwn));
        assert_eq!(chosen.hint, None);
        assert_eq!(chosen.env, [("OFFSHOOT_BACKEND".into(), "cpu".into())]);
    }

    #[test]
    fn a_gpu_without_its_library_falls_back_with_the_command_that_helps() {
        let root = tempfile::tempdir().unwrap();
        let chosen = choose(Asked::Auto, NVIDIA, &places(root.path())).unwrap();
        assert_eq!(chosen.backend, Backend::Cpu);
        let hint = chosen.hint.unwrap();
        assert!(hint.contains("python3 -m pip install --target"), "{hint}");
        assert!(hint.ends_with(&format!("cuda' mlx-cuda-13=={}", mlx_version())), "{hint}");
    }

    #[test]
    fn what_was_asked_for_is_never_replaced() {
        let root = tempfile::tempdir().unwrap();
        let asked = |backend| choose(Asked::Exactly(backend), NVIDIA, &places(root.path()));
        let error = asked(Backend::Cuda).unwrap_err();
        assert!(matches!(error, BackendError::NotInstalled { backend: Backend::Cuda, .. }));
        assert!(error.hint().unwrap().contains("mlx-cuda-13=="));
        assert_eq!(asked(Backend::Metal), Err(BackendError::Impossible(Backend::Metal)));
        assert_eq!(asked(Backend::Cpu).unwrap().backend, Backend::Cpu);
    }

    #[test]
    fn libraries_are_found_in_order() {
        let root = tempfile::tempdir().unwrap();
        let root = root.path();
        let mut places = places(root);
        let found = |places: &Places| choose(Asked::Auto, NVIDIA, places).unwrap();
        let on_path = install(root, "elsewhere");
        places.search_path = Some(on_path.clone().into());
        assert_eq!(found(&places).library, Library::OnSearchPath(on_path.clone()));
        let changes_path = |(name, _): &(OsString, OsString)| name == SEARCH_PATH_VAR;
        assert!(!found(&places).env.iter().any(changes_path), "the search path stays as it is");
        for setting in CUDA_SETTINGS.map(|(name, value)| (name.into(), value.into())) {
            assert!(found(&places).env.contains(&setting), "{setting:?}");
        }
        let kept = (OsString::from(KERNELS_VAR), root.join("data/kernels").into_os_string());
        assert!(found(&places).env.contains(&kept));
        let installed = install(root, &format!("data/mlx/{}/cuda/mlx/lib", mlx_version()));
        assert_eq!(found(&places).library, Library::Folder(installed));
        let beside = install(root, "bin/mlx-cuda/mlx/lib");
        assert_eq!(found(&places).library, Library::Folder(beside));
        let explicit = install(root, "explicit");
        places.explicit = Some(explicit.clone());
        assert_eq!(found(&places).library, Library::Folder(explicit));
        places.explicit = Some(root.join("bin"));
        let error = choose(Asked::Auto, NVIDIA, &places).unwrap_err();
        assert_eq!(error, BackendError::NoLibraryIn(root.join("bin")));
    }

    #[test]
    fn the_wheels_neighbours_join_the_search_path() {
        let root = tempfile::tempdir().unwrap();
        let root = root.path();
        let lib = install(root, "bin/mlx-cuda/mlx/lib");
        let site = root.join("bin/mlx-cuda");
        let neighbours = ["nvidia/cublas/lib", "nvidia/cudnn/lib", "mlx_cuda_13.libs"];
        for neighbour in neighbours {
            fs::create_dir_all(site.join(neighbour)).unwrap();
        }
        fs::create_dir_all(site.join("nvidia/no-lib-here")).unwrap();
        let places = Places { search_path: Some("/opt/before".into()), ..places(root) };
        let chosen = choose(Asked::Auto, NVIDIA, &places).unwrap();
        let (_, value) = chosen.env.iter().find(|(name, _)| name == SEARCH_PATH_VAR).unwrap();
        let expected: Vec<_> = [lib]
            .into_iter()
            .chain(neighbours.map(|neighbour| site.join(neighbour)))
            .chain([PathBuf::from("/opt/before")])
            .collect();
        assert_eq!(env::split_paths(value).collect::<Vec<_>>(), expected);
    }

    #[test]
    fn what_the_c_library_was_told_is_told_again_and_holds() {
        let root = tempfile::tempdir().unwrap();
        let root = root.path();
        install(root, "bin/mlx-cuda/mlx/lib");
        let told = |own: Option<&str>, machine| {
            let places = Places { glibc_tunables: own.map(Into::into), ..places(root) };
            let chosen = choose(Asked::Auto, machine, &places).unwrap();
            chosen
                .env
                .into_iter()
                .find(|(name, _)| name == "GLIBC_TUNABLES")
                .map(|(_, value)| value)
        };
        assert_eq!(told(None, NVIDIA).unwrap(), GLIBC_TUNABLES.1);
        let both = format!("{}:glibc.malloc.check=3", GLIBC_TUNABLES.1);
        assert_eq!(told(Some("glibc.malloc.check=3"), NVIDIA).unwrap(), *both);
        assert_eq!(told(None, CPU), None);
    }
}
