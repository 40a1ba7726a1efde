//! The file of one extent, `<16 hexadecimal digits of its id>.extent`. Numbers are little-endian,
//! checksums XXH3 (64 bits, seed 0).
//!
//! ```text
//!  byte  0   8  magic "OFFSHKV\x01"
//!        8   4  version
//!       12   4  n, the number of pieces
//!       16  16  hash of the fingerprint
//!       32   8  id of the extent
//!       40  16  first piece: 8 its bytes, at least 1 · 8 its checksum
//!        …      the other pieces
//!   40+16n   8  checksum of all before
//!   48+16n      the pieces, one after the other, to the end of the file
//! ```
//!
//! It is written whole and synced, then its name is, and then the index gets an entry: the one
//! write that makes it count. The entry holds the length of the file and the checksum of the
//! header, and with it of all that is in the file. A file is never written again; what nobody needs
//! any more at its end is cut off, a piece or more, after the index has got an entry about it.

use kvcache::{ExtentId, Place};

use crate::error::{Error, Result};
use crate::fields::{Fields, checksum};
use crate::files::{Files, Handle};
use crate::fingerprint::VERSION;

const MAGIC: [u8; 8] = *b"OFFSHKV\x01";
const FIXED_BYTES: u64 = 40;
const PIECE_BYTES: u64 = 16;
const SUM_BYTES: u64 = 8;
const SUFFIX: &str = ".extent";

/// What the index says of an extent's file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sealed {
    /// How long it is. It may be longer where it was to be cut.
    pub n_bytes: u64,
    /// How many pieces it was written with.
    pub n_pieces: u32,
    /// The checksum in its header.
    pub checksum: u64,
}

impl Sealed {
    /// Bytes of the pieces that it has.
    pub fn piece_bytes(&self) -> u64 {
        let header_bytes = header_bytes(u64::from(self.n_pieces));
        self.n_bytes.saturating_sub(header_bytes.unwrap_or(u64::MAX))
    }

    /// The same, cut off after `piece_bytes` of its pieces.
    pub fn cut(&self, piece_bytes: u64) -> Self {
        let header_bytes = self.n_bytes - self.piece_bytes();
        Self { n_bytes: self.n_bytes.min(header_bytes.saturating_add(piece_bytes)), ..*self }
    }
}

/// An extent's file, open, its header read and checked.
pub struct Opened {
    pub id: ExtentId,
    pub sealed: Sealed,
    handle: Box<dyn Handle>,
    name: String,
    /// Where pieces begin and end in the file, and their checksums.
    pieces: Vec<(u64, u64, u64)>,
    /// Bytes before the first piece.
    header_bytes: u64,
}

/// The name of an extent's file.
pub fn name(id: ExtentId) -> String {
    format!("{:016x}{SUFFIX}", id.0)
}

/// The extent that a file is named after.
pub fn id_of(name: &str) -> Option<ExtentId> {
    let digits = name.strip_suffix(SUFFIX)?;
    let is_ours =
        digits.len() == 16 && digits.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
    is_ours.then(|| u64::from_str_radix(digits, 16).ok().map(ExtentId)).flatten()
}

/// The header of an extent of these pieces, and what the index is to say of it. `None` if there are
/// more pieces or bytes than numbers have room for, or a piece is empty.
pub fn header(fingerprint: u128, id: ExtentId, pieces: &[&[u8]]) -> Option<(Vec<u8>, Sealed)> {
    let mut header = Vec::with_capacity(header_bytes(pieces.len() as u64)? as usize);
    header.extend(MAGIC);
    header.extend(VERSION.to_le_bytes());
    let n_pieces = u32::try_from(pieces.len()).ok()?;
    header.extend(n_pieces.to_le_bytes());
    header.extend(fingerprint.to_le_bytes());
    header.extend(id.0.to_le_bytes());
    let mut n_bytes = 0u64;
    for piece in pieces {
        n_bytes = n_bytes.checked_add(piece.len() as u64).filter(|_| !piece.is_empty())?;
        header.extend((piece.len() as u64).to_le_bytes());
        header.extend(checksum(piece, 0).to_le_bytes());
    }
    let sum = checksum(&header, 0);
    header.extend(sum.to_le_bytes());
    let n_bytes = n_bytes.checked_add(header.len() as u64)?;
    Some((header, Sealed { n_bytes, n_pieces, checksum: sum }))
}

fn header_bytes(n_pieces: u64) -> Option<u64> {
    n_pieces.checked_mul(PIECE_BYTES)?.checked_add(FIXED_BYTES + SUM_BYTES)
}

/// Writes an extent's file and syncs it, but not its name.
pub fn write(
    files: &dyn Files,
    id: ExtentId,
    header: &[u8],
    pieces: &[&[u8]],
) -> std::io::Result<()> {
    let handle = files.create(&name(id))?;
    let mut offset = 0;
    for bytes in [header].iter().chain(pieces) {
        handle.write_at(bytes, offset)?;
        offset += bytes.len() as u64;
    }
    handle.sync()
}

/// Cuts an extent's file off where it ends now.
pub fn cut(files: &dyn Files, id: ExtentId, sealed: Sealed) -> std::io::Result<()> {
    files.edit(&name(id))?.cut(sealed.n_bytes)
}

impl Opened {
    /// Opens the file that the index says is there.
    pub fn open(
        files: &dyn Files,
        fingerprint: u128,
        id: ExtentId,
        sealed: Sealed,
    ) -> Result<Self> {
        let name = name(id);
        let path = || files.path(&name);
        let of_read = |error| Error::of_read(path(), error);
        let handle = files.open(&name).map_err(of_read)?;
        let corrupt = |what| Error::Corrupt { path: path(), what };
        // Longer it may be: the index is first to know of a cut.
        if handle.n_bytes().map_err(of_read)? < sealed.n_bytes {
            return Err(corrupt("it is not as long as the index says"));
        }
        let mut fixed = [0; FIXED_BYTES as usize];
        handle.read_at(&mut fixed, 0).map_err(of_read)?;
        let n_pieces = n_pieces(&fixed, fingerprint, id).map_err(corrupt)?;
        let too_many = || corrupt("it is too short for its pieces");
        let header_bytes = header_bytes(u64::from(n_pieces)).ok_or_else(too_many)?;
        if header_bytes > sealed.n_bytes {
            return Err(too_many());
        }
        let mut header = vec![0; header_bytes as usize];
        handle.read_at(&mut header, 0).map_err(of_read)?;
        let pieces = pieces(&header, sealed).map_err(corrupt)?;
        Ok(Self { id, sealed, handle, pieces, header_bytes, name })
    }

    /// Fills `into` with the piece at `place`.
    pub fn read(&self, files: &dyn Files, place: Place, into: &mut [u8]) -> Result<()> {
        let start = place.offset.checked_add(self.header_bytes);
        let end = start.and_then(|start| start.checked_add(place.n_bytes));
        let idx = start.and_then(|at| self.pieces.binary_search_by_key(&at, |piece| piece.0).ok());
        let piece = idx.and_then(|idx| self.pieces.get(idx));
        let Some((start, _, sum)) = piece.filter(|piece| Some(piece.1) == end) else {
            return Err(Error::Invalid { what: "no piece begins and ends where one is asked for" });
        };
        let path = || files.path(&self.name);
        self.handle.read_at(into, *start).map_err(|error| Error::of_read(path(), error))?;
        if checksum(into, 0) != *sum {
            return Err(Error::Corrupt { path: path(), what: "a piece is not what was written" });
        }
        Ok(())
    }
}

/// How many pieces a header says there are.
fn n_pieces(
    fixed: &[u8],
    fingerprint: u128,
    id: ExtentId,
) -> std::result::Result<u32, &'static str> {
    let mut fields = Fields(fixed);
    if fields.bytes() != Some(MAGIC) || fields.u32() != Some(VERSION) {
        return Err("it is no extent of this version");
    }
    let n_pieces = fields.u32().ok_or("its header is too short")?;
    if fields.u128() != Some(fingerprint) {
        return Err("it is of another fingerprint");
    }
    if fields.u64() != Some(id.0) {
        return Err("it is another extent");
    }
    Ok(n_pieces)
}

/// Where the pieces are, by a header that is there as a whole.
fn pieces(
    header: &[u8],
    sealed: Sealed,
) -> std::result::Result<Vec<(u64, u64, u64)>, &'static str> {
    let (body, sum) = header.split_last_chunk::<8>().ok_or("its header is too short")?;
    let sum = u64::from_le_bytes(*sum);
    if sum != checksum(body, 0) {
        return Err("its header is not what was written");
    }
    if sum != sealed.checksum {
        return Err("it is not the file that the index means");
    }
    let table = body.get(FIXED_BYTES as usize..).unwrap_or_default();
    let mut at = header.len() as u64;
    let mut pieces = Vec::with_capacity(table.len() / PIECE_BYTES as usize);
    let mut fields = Fields(table);
    while let (Some(n_bytes), Some(sum)) = (fields.u64(), fields.u64()) {
        let end = at.checked_add(n_bytes).filter(|_| n_bytes > 0);
        let end = end.ok_or("its pieces cannot be")?;
        pieces.push((at, end, sum));
        at = end;
    }
    pieces.retain(|(_, end, _)| *end <= sealed.n_bytes);
    let end = pieces.last().map_or(header.len() as u64, |(_, end, _)| *end);
    if end == sealed.n_bytes { Ok(pieces) } else { Err("its pieces do not fill it") }
}
