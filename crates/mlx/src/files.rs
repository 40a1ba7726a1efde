//! Safetensors files through MLX: loading is lazy, a tensor's bytes are read when it is evaluated.

use std::collections::BTreeMap;
use std::path::Path;

use mlx_sys::ffi;

use crate::{Array, Error, Result, error};

/// The tensors and the metadata of one file.
#[derive(Debug, Default)]
pub struct Safetensors {
    /// Tensors by name.
    pub tensors: BTreeMap<String, Array>,
    /// The header's `__metadata__`.
    pub metadata: BTreeMap<String, String>,
}

/// Opens a safetensors file.
///
/// # Errors
/// The file cannot be read or its header is broken. Whether the tensors' bytes are all there shows
/// when they are evaluated.
pub fn load_safetensors(path: &Path) -> Result<Safetensors> {
    let of = |e| error::of_op("load_safetensors", &[], e);
    let file = ffi::load_safetensors(utf8(path, "load_safetensors")?).map_err(of)?;
    let mut tensors = BTreeMap::new();
    for name in ffi::tensors_names(&file).map_err(of)? {
        let array = Array::wrap("load_safetensors", &[], ffi::tensors_get(&file, &name))?;
        tensors.insert(name, array);
    }
    let mut pairs = ffi::tensors_metadata(&file).map_err(of)?.into_iter();
    let mut metadata = BTreeMap::new();
    while let (Some(key), Some(value)) = (pairs.next(), pairs.next()) {
        metadata.insert(key, value);
    }
    Ok(Safetensors { tensors, metadata })
}

/// Evaluates the tensors and writes them to a safetensors file, replacing what was there.
///
/// # Errors
/// The file cannot be written, or evaluation failed.
pub fn save_safetensors(path: &Path, content: &Safetensors) -> Result<()> {
    let of = |e| error::of_op("save_safetensors", &[], e);
    let mut file = ffi::tensors_new().map_err(of)?;
    for (name, array) in &content.tensors {
        ffi::tensors_put(file.pin_mut(), name, &array.0).map_err(of)?;
    }
    for (key, value) in &content.metadata {
        ffi::tensors_put_metadata(file.pin_mut(), key, value).map_err(of)?;
    }
    ffi::save_safetensors(utf8(path, "save_safetensors")?, &file).map_err(of)
}

fn utf8<'a>(path: &'a Path, op: &'static str) -> Result<&'a str> {
    path.to_str().ok_or_else(|| Error::Op {
        op,
        inputs: path.display().to_string(),
        message: "MLX takes only paths that are valid UTF-8".to_owned(),
    })
}
