//! The tensors of a folder's safetensors files: headers are validated in full before a byte of data
//! is used.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use mlx::Array;
use safetensors::tensor::{Metadata, TensorInfo};

use crate::{Error, Result};

/// As much header as a file may have: real ones stay below 20 MB.
const MAX_HEADER_BYTES: u64 = 100 << 20;
const INDEX_FILE: &str = "model.safetensors.index.json";
const MAX_INDEX_BYTES: u64 = 100 << 20;

/// One tensor's place and form.
#[derive(Clone, Debug)]
pub(super) struct Entry {
    pub file: PathBuf,
    pub info: TensorInfo,
}

impl Entry {
    pub fn n_bytes(&self) -> u64 {
        (self.info.data_offsets.1 - self.info.data_offsets.0) as u64
    }

    pub fn error(&self, name: &str, reason: impl Into<String>) -> Error {
        Error::Tensor { path: self.file.clone(), name: name.to_owned(), reason: reason.into() }
    }
}

/// All tensors of a folder, by name.
#[derive(Debug)]
pub(super) struct Files {
    pub entries: BTreeMap<String, Entry>,
    arrays: BTreeMap<String, Array>,
}

impl Files {
    /// Reads and validates the headers of every file that the index names, or of all
    /// `*.safetensors` where there is no index.
    pub fn open(folder: &Path) -> Result<Self> {
        let mut entries = BTreeMap::<String, Entry>::new();
        let mut arrays = BTreeMap::new();
        for file in file_list(folder)? {
            for (name, info) in header(&file)? {
                let entry = Entry { file: file.clone(), info };
                if let Some(first) = entries.insert(name.clone(), entry) {
                    let reason = format!("stands in {} too", first.file.display());
                    return Err(Error::Tensor { path: file, name, reason });
                }
            }
            arrays.extend(mlx::load_safetensors(&file).map_err(|e| Error::file(&file, e))?.tensors);
        }
        Ok(Self { entries, arrays })
    }

    /// The tensor, whose bytes are read when it is evaluated. Each can be taken once.
    pub fn take(&mut self, name: &str) -> Option<Array> {
        self.arrays.remove(name)
    }
}

fn file_list(folder: &Path) -> Result<BTreeSet<PathBuf>> {
    let index = folder.join(INDEX_FILE);
    if index.is_file() {
        return indexed_files(folder, &index);
    }
    let list = std::fs::read_dir(folder).map_err(|e| Error::file(folder, e))?;
    let files = list
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| path.extension().is_some_and(|ext| ext == "safetensors"))
        .collect::<BTreeSet<_>>();
    match files.is_empty() {
        true => Err(Error::file(folder, "holds no .safetensors file")),
        false => Ok(files),
    }
}

fn indexed_files(folder: &Path, index: &Path) -> Result<BTreeSet<PathBuf>> {
    let text = read_capped(index, MAX_INDEX_BYTES)?;
    let json =
        serde_json::from_slice::<serde_json::Value>(&text).map_err(|e| Error::file(index, e))?;
    let map = json.get("weight_map").and_then(|map| map.as_object());
    let map = map.ok_or_else(|| Error::file(index, "has no object 'weight_map'"))?;
    let mut files = BTreeSet::new();
    for (tensor, name) in map {
        let name = name.as_str().unwrap_or_default();
        let is_plain = Path::new(name).file_name().is_some_and(|file| file == name);
        if !is_plain {
            let reason =
                format!("tensor {tensor} is said to be in '{name}', which is no file name");
            return Err(Error::file(index, reason));
        }
        files.insert(folder.join(name));
    }
    match files.iter().find(|file| !file.is_file()) {
        Some(absent) => Err(Error::file(absent, "the index names this file, but it is not there")),
        None => Ok(files),
    }
}

fn read_capped(path: &Path, max_bytes: u64) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let file = File::open(path).map_err(|e| Error::file(path, e))?;
    file.take(max_bytes + 1).read_to_end(&mut bytes).map_err(|e| Error::file(path, e))?;
    if bytes.len() as u64 > max_bytes {
        return Err(Error::file(path, format!("is larger than {max_bytes} bytes")));
    }
    Ok(bytes)
}

/// Names and places of a file's tensors. The safetensors crate checks that offsets follow each
/// other without holes and fit shapes and dtypes; that the data is all there is checked here.
fn header(path: &Path) -> Result<Vec<(String, TensorInfo)>> {
    let mut file = File::open(path).map_err(|e| Error::file(path, e))?;
    let file_bytes = file.metadata().map_err(|e| Error::file(path, e))?.len();
    let mut length = [0; 8];
    file.read_exact(&mut length).map_err(|_| {
        Error::file(path, format!("is truncated: {file_bytes} bytes are no header"))
    })?;
    let header_bytes = u64::from_le_bytes(length);
    if header_bytes > MAX_HEADER_BYTES {
        return Err(Error::file(
            path,
            format!("is no safetensors file: a header of {header_bytes} bytes"),
        ));
    }
    if header_bytes + 8 > file_bytes {
        let reason =
            format!("is truncated: a header of {header_bytes} bytes in {file_bytes} bytes");
        return Err(Error::file(path, reason));
    }
    let mut text = vec![0; header_bytes as usize];
    file.read_exact(&mut text).map_err(|e| Error::file(path, e))?;
    let metadata = serde_json::from_slice::<Metadata>(&text)
        .map_err(|e| Error::file(path, format!("has a broken safetensors header: {e}")))?;
    let wanted = metadata.data_len() as u64 + header_bytes + 8;
    if wanted != file_bytes {
        let what =
            if wanted > file_bytes { "is truncated" } else { "is longer than its header says" };
        return Err(Error::file(path, format!("{what}: {file_bytes} bytes instead of {wanted}")));
    }
    Ok(metadata.tensors().into_iter().map(|(name, info)| (name, info.clone())).collect())
}
