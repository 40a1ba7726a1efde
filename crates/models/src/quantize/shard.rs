//! A safetensors file whose header is known before its data: tensors are written piece by piece,
//! each at its own place, so that a file of any size needs no memory.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};

use crate::{Error, Result};

use super::plan::{Item, Part};

/// Readers map files; the data begin at a multiple of this.
const ALIGNMENT: usize = 8;

/// The beginning of a file, and where each part lies.
#[derive(Debug)]
pub(super) struct Layout {
    /// Length prefix and header.
    pub head: Vec<u8>,
    /// By item and part, from the start of the file.
    pub places: Vec<Vec<u64>>,
    pub file_bytes: u64,
}

impl Layout {
    /// Parts lie in the order of their elements' sizes, so that all are aligned.
    pub fn of(items: &[Item]) -> Self {
        let mut order = Vec::new();
        for (i, item) in items.iter().enumerate() {
            order.extend(item.parts.iter().enumerate().map(|(k, part)| (i, k, part)));
        }
        order.sort_by(|a, b| {
            let key = |part: &Part| (std::cmp::Reverse(part.dtype.bitsize()), part.name.clone());
            key(a.2).cmp(&key(b.2))
        });
        let mut places = items.iter().map(|item| vec![0; item.parts.len()]).collect::<Vec<_>>();
        let mut header = Map::new();
        header.insert("__metadata__".to_owned(), json!({ "format": "mlx" }));
        let mut end = 0;
        for (i, k, part) in order {
            places[i][k] = end;
            let offsets = [end, end + part.n_bytes];
            end = offsets[1];
            let entry = json!({
                "dtype": part.dtype.to_string(),
                "shape": part.shape,
                "data_offsets": offsets,
            });
            header.insert(part.name.clone(), entry);
        }
        let mut text = Value::Object(header).to_string();
        text.extend(std::iter::repeat_n(' ', text.len().next_multiple_of(ALIGNMENT) - text.len()));
        let mut head = (text.len() as u64).to_le_bytes().to_vec();
        head.extend(text.bytes());
        let base = head.len() as u64;
        places.iter_mut().flatten().for_each(|place| *place += base);
        Self { head, places, file_bytes: base + end }
    }
}

/// A file in the making.
#[derive(Debug)]
pub(super) struct ShardFile {
    path: PathBuf,
    file: File,
}

impl ShardFile {
    /// Creates the file, or empties it, and writes its head.
    pub fn create(path: &Path, layout: &Layout) -> Result<Self> {
        let file = File::create(path).map_err(|e| Error::write(path, e))?;
        let mut shard = Self { path: path.to_owned(), file };
        shard.write_at(0, &layout.head)?;
        Ok(shard)
    }

    /// Writes bytes at a place.
    pub fn write_at(&mut self, place: u64, bytes: &[u8]) -> Result<()> {
        let written =
            self.file.seek(SeekFrom::Start(place)).and_then(|_| self.file.write_all(bytes));
        written.map_err(|e| Error::write(&self.path, e))
    }

    /// All of it is on the disk.
    pub fn finish(self, layout: &Layout) -> Result<()> {
        let failed = |e| Error::write(&self.path, e);
        self.file.sync_all().map_err(failed)?;
        let found = self.file.metadata().map_err(failed)?.len();
        match found == layout.file_bytes {
            true => Ok(()),
            false => {
                let reason = format!("has {found} bytes instead of {}", layout.file_bytes);
                Err(Error::Write { path: self.path, reason })
            }
        }
    }
}

/// FNV-1a of a file in words of 8 bytes, the last one filled up with zeros.
pub(super) fn hash(path: &Path) -> std::io::Result<u64> {
    let mut file = File::open(path)?;
    let mut buffer = vec![0; 1 << 20];
    let mut hash = 0xcbf2_9ce4_8422_2325u64;
    loop {
        let mut n = 0;
        while n < buffer.len() {
            match file.read(&mut buffer[n..])? {
                0 => break,
                more => n += more,
            }
        }
        let padded = n.next_multiple_of(8);
        buffer[n..padded].fill(0);
        for word in buffer[..padded].chunks_exact(8) {
            let word = u64::from_le_bytes(word.try_into().expect("chunks of eight"));
            hash = (hash ^ word).wrapping_mul(0x0100_0000_01b3);
        }
        if n < buffer.len() {
            return Ok(hash);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::quantize::plan::Work;
    use safetensors::tensor::{Dtype, Metadata};

    fn item(parts: &[(&str, Dtype, &[usize])]) -> Item {
        let part = |(name, dtype, shape): &(&str, Dtype, &[usize])| Part {
            name: (*name).to_owned(),
            dtype: *dtype,
            shape: shape.to_vec(),
            n_bytes: (shape.iter().product::<usize>() * dtype.bitsize() / 8) as u64,
        };
        Item {
            path: "path".into(),
            file: PathBuf::new(),
            role: None,
            n_weights: 0,
            source_bytes: 0,
            parts: parts.iter().map(part).collect(),
            work: Work::Copy { arrays: Vec::new() },
        }
    }

    #[test]
    fn a_head_passes_the_check_of_the_safetensors_crate_and_parts_are_aligned() {
        let items = [
            item(&[("b.weight", Dtype::U32, &[3, 5]), ("b.scales", Dtype::U8, &[3, 7])]),
            item(&[("a", Dtype::BF16, &[5])]),
            item(&[("c", Dtype::F32, &[])]),
        ];
        let layout = Layout::of(&items);
        assert_eq!(layout.head.len() % ALIGNMENT, 0);
        let metadata = serde_json::from_slice::<Metadata>(&layout.head[8..]).unwrap();
        assert_eq!(metadata.data_len() as u64 + layout.head.len() as u64, layout.file_bytes);
        assert_eq!(metadata.metadata().as_ref().unwrap()["format"], "mlx");
        for (item, places) in items.iter().zip(&layout.places) {
            for (part, place) in item.parts.iter().zip(places) {
                let info = metadata.info(&part.name).unwrap();
                assert_eq!(info.data_offsets.0 + layout.head.len(), *place as usize);
                assert_eq!((info.dtype, &info.shape), (part.dtype, &part.shape));
                assert_eq!(*place as usize * 8 % part.dtype.bitsize(), 0, "{}", part.name);
            }
        }
    }

    #[test]
    fn pieces_land_at_their_places_and_a_file_that_is_too_short_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x");
        let items = [item(&[("a", Dtype::U8, &[4]), ("b", Dtype::U8, &[3])])];
        let layout = Layout::of(&items);
        let [a, b] = [layout.places[0][0], layout.places[0][1]];
        let mut file = ShardFile::create(&path, &layout).unwrap();
        file.write_at(b, &[5, 6, 7]).unwrap();
        file.write_at(a, &[1, 2]).unwrap();
        file.write_at(a + 2, &[3, 4]).unwrap();
        file.finish(&layout).unwrap();
        let bytes = std::fs::read(&path).unwrap();
        assert_eq!(bytes[layout.head.len()..], [1, 2, 3, 4, 5, 6, 7]);
        let short = ShardFile::create(&path, &layout).unwrap().finish(&layout);
        assert!(matches!(short, Err(Error::Write { .. })), "{short:?}");
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn a_full_disk_is_an_error_that_names_the_file() {
        let path = Path::new("/dev/full");
        let file = File::options().write(true).open(path).unwrap();
        let mut shard = ShardFile { path: path.to_owned(), file };
        let error = shard.write_at(0, &[1]).unwrap_err();
        assert!(matches!(error, Error::Write { .. }));
        assert!(error.to_string().contains("/dev/full"), "{error}");
    }

    #[test]
    fn a_hash_sees_every_byte_and_the_length_of_words() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x");
        let of = |bytes: &[u8]| {
            std::fs::write(&path, bytes).unwrap();
            hash(&path).unwrap()
        };
        let mut bytes = vec![7; (1 << 20) + 13];
        let whole = of(&bytes);
        assert_eq!(whole, of(&bytes));
        for i in [0, 8, 1 << 20, (1 << 20) + 12] {
            bytes[i] = 8;
            assert_ne!(whole, of(&bytes), "{i}");
            bytes[i] = 7;
        }
        bytes.truncate(1 << 20);
        assert_ne!(whole, of(&bytes));
    }
}
