//! Writes an f32 matrix as a NumPy file, row by row; it appears under its name only when complete.

use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use tempfile::NamedTempFile;

/// A file in the making.
pub struct NpyWriter {
    path: PathBuf,
    file: BufWriter<NamedTempFile>,
    missing_values: usize,
}

impl NpyWriter {
    /// Begins a file of the given shape beside its final place.
    pub fn create(path: &Path, n_rows: usize, n_cols: usize) -> io::Result<Self> {
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
        let mut builder = tempfile::Builder::new();
        builder.prefix(".offshoot-").suffix(".part");
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt;
            // As any other new file: the umask decides.
            builder.permissions(std::fs::Permissions::from_mode(0o666));
        }
        let mut file = BufWriter::new(builder.tempfile_in(folder.unwrap_or(Path::new(".")))?);
        file.write_all(&header(n_rows, n_cols))?;
        Ok(Self { path: path.to_owned(), file, missing_values: n_rows * n_cols })
    }

    /// Appends values, row after row.
    pub fn append(&mut self, values: &[f32]) -> io::Result<()> {
        self.missing_values = self
            .missing_values
            .checked_sub(values.len())
            .ok_or_else(|| io::Error::other("there are more values than the shape has"))?;
        for value in values {
            self.file.write_all(&value.to_le_bytes())?;
        }
        Ok(())
    }

    /// Puts the complete file in its place.
    pub fn finish(self) -> io::Result<()> {
        if self.missing_values > 0 {
            return Err(io::Error::other(format!("{} values are missing", self.missing_values)));
        }
        let file = self.file.into_inner().map_err(io::IntoInnerError::into_error)?;
        file.persist(&self.path).map_err(|e| e.error)?;
        Ok(())
    }
}

/// Magic, version 1.0, and a dictionary padded so that the data begin at a multiple of 64.
fn header(n_rows: usize, n_cols: usize) -> Vec<u8> {
    const PREFIX_BYTES: usize = 10;
    let shape = format!("({n_rows}, {n_cols})");
    let dict = format!("{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}, }}");
    let padded = (PREFIX_BYTES + dict.len() + 1).next_multiple_of(64) - PREFIX_BYTES;
    let mut bytes = b"\x93NUMPY\x01\x00".to_vec();
    let padded_u16 = u16::try_from(padded).expect("two numbers fit a short dictionary");
    bytes.extend(padded_u16.to_le_bytes());
    bytes.extend(format!("{dict:<width$}\n", width = padded - 1).bytes());
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_file_is_numpys_format_byte_by_byte() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.npy");
        let mut writer = NpyWriter::create(&path, 2, 3).unwrap();
        writer.append(&[1.0, 2.0, 3.0]).unwrap();
        assert!(!path.exists(), "nothing is visible before it is complete");
        writer.append(&[-1.5, f32::NEG_INFINITY, 0.0]).unwrap();
        writer.finish().unwrap();
        let bytes = std::fs::read(&path).unwrap();
        assert_eq!(&bytes[..10], b"\x93NUMPY\x01\x00\x76\x00");
        let dict = "{'descr': '<f4', 'fortran_order': False, 'shape': (2, 3), }";
        assert!(bytes[10..128].starts_with(dict.as_bytes()));
        assert_eq!(bytes[127], b'\n');
        let values: Vec<f32> =
            bytes[128..].chunks(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect();
        assert_eq!(values, [1.0, 2.0, 3.0, -1.5, f32::NEG_INFINITY, 0.0]);
    }

    #[test]
    fn an_incomplete_or_overfull_file_never_appears() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.npy");
        let mut writer = NpyWriter::create(&path, 1, 2).unwrap();
        writer.append(&[1.0]).unwrap();
        assert!(writer.append(&[1.0, 2.0]).is_err());
        drop(writer);
        let writer = NpyWriter::create(&path, 1, 2).unwrap();
        assert!(writer.finish().is_err());
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    }
}
