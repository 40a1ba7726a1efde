//! The tensors of a folder's safetensors files: headers are validated in full before a byte of data
//! is used.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use safetensors::tensor::{Metadata, TensorInfo};

use crate::{Error, Result};

use super::tensors::{Tensor, Tensors};

/// As much header as a file may have: real ones stay below 20 MB.
const MAX_HEADER_BYTES: u64 = 100 << 20;
const INDEX_FILE: &str = "model.safetensors.index.json";
const MAX_INDEX_BYTES: u64 = 100 << 20;

/// Reads and validates the headers of every file that the index names, or of all `*.safetensors`
/// where there is no index. `says_mlx` tells whether config.json is one that MLX tools wrote.
pub(super) fn open(folder: &Path, says_mlx: bool) -> Result<Tensors> {
    let mut tensors = Tensors { is_mlx: says_mlx, ..Tensors::default() };
    for file in file_list(folder)? {
        let infos = header(&file)?;
        let mut content = mlx::load_safetensors(&file).map_err(|e| Error::file(&file, e))?;
        tensors.is_mlx |= content.metadata.get("format").is_some_and(|format| format == "mlx");
        for (name, info) in infos {
            if let Some(first) = tensors.map.get(&name) {
                let reason = format!("stands in {} too", first.file.display());
                return Err(Error::Tensor { path: file, name, reason });
            }
            let Some(array) = content.tensors.remove(&name) else {
                let reason = "MLX did not find it in the file".to_owned();
                return Err(Error::Tensor { path: file, name, reason });
            };
            let tensor = Tensor { array, file: file.clone(), dtype: info.dtype };
            tensors.map.insert(name, tensor);
        }
    }
    tensors.is_mlx |= tensors.map.keys().any(|name| name.contains(".switch_mlp."));
    Ok(tensors)
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
