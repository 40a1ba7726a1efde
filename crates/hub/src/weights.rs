//! The weight files' own headers: whether the files are whole, and how many parameters they hold.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use safetensors::Dtype;
use safetensors::tensor::{Metadata, TensorInfo};
use serde_json::{Map, Value};

use crate::error::FolderProblem;

/// As the format's own library has it.
const MAX_HEADER_BYTES: u64 = 100_000_000;

/// Bytes before the header, with its length.
const PREFIX_BYTES: u64 = 8;

/// What the headers say.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Weights {
    /// Numbers that were trained; scales and the like of quantized tensors do not count.
    pub n_params: u64,
    /// Bytes of all tensors.
    pub tensor_bytes: u64,
}

impl Weights {
    /// Bits per parameter, scales and the like included; none without parameters.
    pub fn bits_per_weight(&self) -> Option<f64> {
        (self.n_params > 0).then(|| self.tensor_bytes as f64 * 8.0 / self.n_params as f64)
    }
}

/// Tensors of all files by name.
type Tensors = HashMap<String, TensorInfo>;

/// The headers of a model's files.
pub(crate) struct Headers {
    tensors: Tensors,
    /// The file that each tensor is in.
    files: HashMap<String, String>,
}

impl Headers {
    /// Reads the headers and checks each against its file's length.
    pub fn read(files: &[impl AsRef<Path>]) -> Result<Self, HeaderError> {
        let mut headers = Self { tensors: HashMap::new(), files: HashMap::new() };
        for path in files {
            let path = path.as_ref();
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            let header = read_header(path, &name)?;
            for (tensor, info) in header.tensors() {
                if headers.tensors.insert(tensor.clone(), info.clone()).is_some() {
                    let reason = format!("holds {tensor:?}, which another file holds as well");
                    return Err(FolderProblem::BadFile { file: name, reason }.into());
                }
                headers.files.insert(tensor, name.clone());
            }
        }
        Ok(headers)
    }

    /// Checks that every tensor that an index names is in the file it names.
    pub fn check_index(&self, index: &Map<String, Value>) -> Result<(), FolderProblem> {
        let map = index.get("weight_map").and_then(Value::as_object);
        for (tensor, file) in map.into_iter().flatten() {
            let file = file.as_str().unwrap_or_default();
            if self.files.get(tensor).map(String::as_str) != Some(file) {
                let reason = format!("does not hold {tensor:?}, though the index says so");
                return Err(FolderProblem::BadFile { file: file.to_owned(), reason });
            }
        }
        Ok(())
    }

    /// Counts parameters and bytes. `config` says how tensors are packed.
    pub fn count(&self, config: &Map<String, Value>) -> Weights {
        let settings = ["quantization", "quantization_config"].iter().find_map(|key| {
            let text = config.get("text_config").and_then(|text| text.get(key));
            text.or_else(|| config.get(*key))?.as_object()
        });
        let count = Count { tensors: &self.tensors, settings };
        let (mut n_params, mut tensor_bytes) = (0u64, 0u64);
        for (name, info) in &self.tensors {
            n_params = n_params.saturating_add(count.params(name, info));
            tensor_bytes += (info.data_offsets.1 - info.data_offsets.0) as u64;
        }
        Weights { n_params, tensor_bytes }
    }
}

/// Why headers cannot be read.
#[derive(Debug)]
pub(crate) enum HeaderError {
    Problem(FolderProblem),
    Io(io::Error),
}

impl From<FolderProblem> for HeaderError {
    fn from(problem: FolderProblem) -> Self {
        Self::Problem(problem)
    }
}

impl From<io::Error> for HeaderError {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

fn read_header(path: &Path, name: &str) -> Result<Metadata, HeaderError> {
    let mut file = File::open(path)?;
    let found_bytes = file.metadata()?.len();
    let truncated = |needed_bytes: u64| FolderProblem::Truncated {
        file: name.to_owned(),
        found_bytes,
        needed_bytes,
    };
    let bad = |reason: String| FolderProblem::BadFile { file: name.to_owned(), reason };
    if found_bytes < PREFIX_BYTES {
        return Err(truncated(PREFIX_BYTES).into());
    }
    let mut prefix = [0; PREFIX_BYTES as usize];
    file.read_exact(&mut prefix)?;
    let header_bytes = u64::from_le_bytes(prefix);
    if header_bytes > MAX_HEADER_BYTES {
        return Err(bad("is not a safetensors file: its header would be too large".into()).into());
    }
    let start = PREFIX_BYTES + header_bytes;
    if found_bytes < start {
        return Err(truncated(start).into());
    }
    let mut header = Vec::new();
    file.take(header_bytes).read_to_end(&mut header)?;
    // This also checks that tensors follow each other without gaps, as long as their shapes say.
    let header: Metadata = serde_json::from_slice(&header)
        .map_err(|e| bad(format!("is not a safetensors file: its header is wrong: {e}")))?;
    match start.saturating_add(header.data_len() as u64) {
        needed if needed > found_bytes => Err(truncated(needed).into()),
        needed if needed < found_bytes => {
            let extra = found_bytes - needed;
            Err(bad(format!("has {extra} bytes more than its header describes")).into())
        }
        _ => Ok(header),
    }
}

/// How parameters are counted in one model.
struct Count<'a> {
    tensors: &'a Tensors,
    settings: Option<&'a Map<String, Value>>,
}

impl Count<'_> {
    fn params(&self, name: &str, info: &TensorInfo) -> u64 {
        let n_values = info.shape.iter().map(|size| *size as u64).product::<u64>();
        if self.is_auxiliary(name) {
            return 0;
        }
        if let Some(path) = name.strip_suffix(".weight") {
            if let Some(scales) = self.tensors.get(&format!("{path}.scales")) {
                let n_groups = scales.shape.iter().map(|size| *size as u64).product::<u64>();
                return n_groups.saturating_mul(self.group_size(path, scales.dtype));
            }
            // Two 4-bit floats to a byte.
            let has_scale = self.tensors.contains_key(&format!("{path}.weight_scale"));
            return if info.dtype == Dtype::U8 && has_scale { n_values * 2 } else { n_values };
        }
        let is_packed = [".qweight", ".weight_packed"].iter().any(|end| name.ends_with(end));
        match info.dtype {
            Dtype::U8 if is_packed || name.ends_with("_blocks") => n_values * 2,
            Dtype::I32 if is_packed => n_values * 32 / self.bits(),
            _ => n_values,
        }
    }

    /// Scales, offsets and the like, which belong to another tensor.
    fn is_auxiliary(&self, name: &str) -> bool {
        const ENDINGS: &[&str] = &[
            ".weight_scale",
            ".weight_scale_inv",
            ".weight_scale_2",
            ".weight_shape",
            ".weight_zero_point",
            ".weight_g_idx",
            ".input_scale",
            ".activation_scale",
            ".qzeros",
            ".g_idx",
            ".inv_freq",
        ];
        let has = |end: &str, of: &str| {
            name.strip_suffix(end)
                .is_some_and(|path| self.tensors.contains_key(&format!("{path}{of}")))
        };
        ENDINGS.iter().any(|end| name.ends_with(end))
            || has(".scales", ".weight")
            || has(".scales", ".qweight")
            || has(".biases", ".scales")
            || has("_scales", "_blocks")
    }

    /// Values that share a scale. Byte scales belong to the formats of fixed groups.
    fn group_size(&self, path: &str, scales: Dtype) -> u64 {
        let settings = self.settings;
        let own = settings.and_then(|settings| settings.get(path)?.as_object());
        let size = |settings: Option<&Map<String, Value>>| settings?.get("group_size")?.as_u64();
        let mode = |settings: Option<&Map<String, Value>>| {
            Some(settings?.get("mode")?.as_str()?.to_owned())
        };
        if let Some(size) = size(own) {
            return size;
        }
        let is_affine = mode(settings).is_none_or(|mode| mode == "affine");
        match (scales == Dtype::U8, is_affine) {
            (true, false) | (false, true) => {
                size(settings).unwrap_or(if is_affine { 64 } else { 32 })
            }
            (true, true) => 32,
            (false, false) => 64,
        }
    }

    fn bits(&self) -> u64 {
        let bits = self.settings.and_then(|settings| settings.get("bits")?.as_u64());
        bits.filter(|bits| (1..=32).contains(bits)).unwrap_or(4)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    /// A file with these tensors, all zeros: name, type, shape.
    fn file(dir: &Path, name: &str, tensors: &[(&str, &str, &[usize])]) {
        let mut header = Map::new();
        let mut end = 0;
        for (tensor, dtype, shape) in tensors {
            let width = match *dtype {
                "U8" => 1,
                "BF16" => 2,
                _ => 4,
            };
            let n = shape.iter().product::<usize>() * width;
            let info = json!({"dtype": dtype, "shape": shape, "data_offsets": [end, end + n]});
            header.insert((*tensor).to_owned(), info);
            end += n;
        }
        let header = Value::Object(header).to_string();
        let length = (header.len() as u64).to_le_bytes();
        std::fs::write(dir.join(name), [&length, header.as_bytes(), &vec![0; end]].concat())
            .unwrap();
    }

    #[test]
    fn parameters_are_counted_as_before_packing() {
        let check = |tensors: &[(&str, &str, &[usize])], config: Value, expected: u64| {
            let dir = tempfile::tempdir().unwrap();
            file(dir.path(), "a", tensors);
            let headers = Headers::read(&[dir.path().join("a")]).unwrap();
            let weights = headers.count(config.as_object().unwrap());
            assert_eq!(weights.n_params, expected, "{tensors:?}");
        };
        check(&[("a.weight", "BF16", &[3, 5]), ("a.bias", "BF16", &[3])], json!({}), 18);
        let affine = [
            ("a.weight", "U32", &[3, 16][..]),
            ("a.scales", "BF16", &[3, 2]),
            ("a.biases", "BF16", &[3, 2]),
        ];
        check(&affine, json!({"quantization": {"group_size": 64, "bits": 4}}), 3 * 128);
        check(&affine, json!({"quantization": {"bits": 4, "a": {"group_size": 32}}}), 3 * 64);
        // A router that stays affine in a model of byte scales.
        check(&affine, json!({"quantization": {"group_size": 32, "mode": "mxfp4"}}), 3 * 128);
        let mxfp4 = [("a.weight", "U32", &[3, 16][..]), ("a.scales", "U8", &[3, 4])];
        check(
            &mxfp4,
            json!({"text_config": {"quantization": {"group_size": 32, "mode": "mxfp4"}}}),
            384,
        );
        let blocks = [("e_blocks", "U8", &[2, 3, 4, 16][..]), ("e_scales", "U8", &[2, 3, 4])];
        check(&blocks, json!({}), 2 * 3 * 128);
        let fp8 = [("a.weight", "U8", &[4, 8][..]), ("a.weight_scale", "U8", &[4, 1])];
        check(&fp8, json!({}), 64);
        let awq = [
            ("a.qweight", "I32", &[8, 2][..]),
            ("a.qzeros", "I32", &[1, 2]),
            ("a.scales", "BF16", &[1, 16]),
        ];
        check(&awq, json!({"quantization_config": {"bits": 4}}), 128);
    }

    #[test]
    fn bits_per_weight_include_the_scales() {
        let dir = tempfile::tempdir().unwrap();
        let tensors = [
            ("a.weight", "U32", &[2, 8][..]),
            ("a.scales", "BF16", &[2, 1]),
            ("a.biases", "BF16", &[2, 1]),
        ];
        file(dir.path(), "a", &tensors);
        let headers = Headers::read(&[dir.path().join("a")]).unwrap();
        let weights = headers.count(&Map::new());
        assert_eq!((weights.n_params, weights.bits_per_weight()), (128, Some(4.5)));
        assert_eq!(Weights { n_params: 0, tensor_bytes: 1 }.bits_per_weight(), None);
    }

    #[test]
    fn files_that_are_not_whole_are_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a");
        let check = |bytes: &[u8], says: &str| {
            std::fs::write(&path, bytes).unwrap();
            match Headers::read(&[&path]) {
                Err(HeaderError::Problem(problem)) => {
                    assert!(problem.to_string().contains(says), "{says}: {problem}");
                }
                Err(HeaderError::Io(error)) => panic!("{error}"),
                Ok(_) => panic!("{says}: it was read"),
            }
        };
        file(dir.path(), "a", &[("x", "BF16", &[3, 5])]);
        let whole = std::fs::read(&path).unwrap();
        check(b"", "is cut off: it has 0 bytes of at least 8");
        check(&whole[..20], "is cut off: it has 20 bytes");
        check(&whole[..whole.len() - 1], "is cut off");
        check(&[&whole[..], b"x"].concat(), "1 bytes more");
        check(&[0xff; 20], "its header would be too large");
        check(b"\x04\0\0\0\0\0\0\0nope", "its header is wrong");
        let lying =
            |header: &str| [&(header.len() as u64).to_le_bytes(), header.as_bytes()].concat();
        let tensor = |shape: &str, offsets: &str| {
            format!(r#"{{"x":{{"dtype":"BF16","shape":{shape},"data_offsets":{offsets}}}}}"#)
        };
        check(&lying(&tensor("[1]", "[2, 4]")), "its header is wrong");
        check(&lying(&tensor("[1]", "[0, 4]")), "its header is wrong");
        check(&lying(&tensor("[1]", "[2, 0]")), "its header is wrong");
        check(&lying(&tensor("[9223372036854775807, 9]", "[0, 2]")), "its header is wrong");
    }

    #[test]
    fn tensors_are_where_the_index_says_and_only_once() {
        let dir = tempfile::tempdir().unwrap();
        file(dir.path(), "a", &[("x", "U8", &[1])]);
        file(dir.path(), "b", &[("y", "U8", &[1])]);
        file(dir.path(), "c", &[("x", "U8", &[1])]);
        let paths =
            |names: &[&str]| names.iter().map(|name| dir.path().join(name)).collect::<Vec<_>>();
        let headers = Headers::read(&paths(&["a", "b"])).unwrap();
        let check = |map: Value| {
            let index = json!({ "weight_map": map });
            headers.check_index(index.as_object().unwrap())
        };
        assert!(check(json!({"x": "a", "y": "b"})).is_ok());
        for (map, says) in
            [(json!({"x": "b"}), "b does not hold \"x\""), (json!({"z": "a"}), "\"z\"")]
        {
            let problem = check(map).unwrap_err().to_string();
            assert!(problem.contains(says), "{problem}");
        }
        assert!(Headers::read(&paths(&["a", "c"])).is_err());
    }
}
