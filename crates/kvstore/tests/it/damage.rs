//! Files that are not what was written.

use kvcache::ExtentId;
use kvstore::files::Files;
use kvstore::{Error, Found};

use crate::forgetful::Forgetful;
use crate::{PLENTY, open_in, piece, place, read, write};

const EXTENT: &str = "0000000000000002.extent";

/// Three extents, the second of two pieces.
fn folder() -> (Forgetful, Vec<Found>) {
    let files = Forgetful::new(1);
    let (store, _) = open_in(files.clone(), PLENTY);
    write(&store, 1, &[1, 2, 3], 0, &[piece(1, 0, 9)]).unwrap();
    write(&store, 2, &[1, 2, 3, 4], 3, &[piece(2, 0, 5), piece(2, 1, 8)]).unwrap();
    write(&store, 3, &[1, 2, 5], 2, &[piece(3, 0, 4)]).unwrap();
    drop(store);
    let (_, found) = open_in(files.clone(), PLENTY);
    assert_eq!(found.len(), 3);
    (files, found)
}

/// All of a file.
fn content(files: &Forgetful, name: &str) -> Vec<u8> {
    let handle = files.open(name).unwrap();
    let mut bytes = vec![0; handle.n_bytes().unwrap() as usize];
    handle.read_at(&mut bytes, 0).unwrap();
    bytes
}

/// A file of this content.
fn put(files: &Forgetful, name: &str, bytes: &[u8]) {
    files.create(name).unwrap().write_at(bytes, 0).unwrap();
}

/// A copy of all files, with `name` replaced.
fn with(files: &Forgetful, name: &str, bytes: &[u8]) -> Forgetful {
    let copy = Forgetful::new(2);
    for (other, _) in files.names().unwrap() {
        put(&copy, &other, &content(files, &other));
    }
    put(&copy, name, bytes);
    copy
}

/// Every way in which bytes are damaged here: each bit of each byte flipped, and each cut.
fn damages(bytes: &[u8]) -> Vec<Vec<u8>> {
    let flips = (0..bytes.len() * 8).map(|bit| {
        let mut damaged = bytes.to_vec();
        damaged[bit / 8] ^= 1 << (bit % 8);
        damaged
    });
    let cuts = (0..bytes.len()).map(|n| bytes[..n].to_vec());
    flips.chain(cuts).chain([[bytes, &[0; 7]].concat()]).collect()
}

/// Opens, and reads all that is there: what was written, or an error. How many reads were right.
fn check(files: Forgetful, written: &[Found]) -> usize {
    let (store, found) = open_in(files.clone(), PLENTY);
    let index_bytes = content(&files, "index").len() as u64;
    assert_eq!(index_bytes, store.stats().index_bytes, "a torn end is cut off");
    assert!(found.iter().all(|found| written.contains(found)), "{found:?}");
    let mut n_right = 0;
    for (id, offset, piece_idx, n) in [(1, 0, 0, 9), (2, 0, 0, 5), (2, 5, 1, 8), (3, 0, 0, 4)] {
        let is_there = found.iter().any(|found| found.id == ExtentId(id));
        match read(&store, place(id, offset, n)) {
            Ok(bytes) => {
                assert_eq!(bytes, piece(id, piece_idx, n as usize));
                n_right += 1;
            }
            Err(Error::Corrupt { .. }) => assert!(is_there),
            Err(Error::Invalid { .. }) => assert!(!is_there),
            Err(error) => panic!("{error}"),
        }
    }
    // What is left of it can be used.
    write(&store, 9, &[8, 8], 0, &[piece(9, 0, 3)]).unwrap();
    assert_eq!(read(&store, place(9, 0, 3)).unwrap(), piece(9, 0, 3));
    n_right
}

#[test]
fn an_extent_with_any_bit_flipped_or_byte_missing_never_gives_wrong_bytes() {
    let (files, written) = folder();
    let bytes = content(&files, EXTENT);
    assert_eq!(bytes.len(), 48 + 2 * 16 + 13);
    assert_eq!(check(with(&files, EXTENT, &bytes), &written), 4);
    for damaged in damages(&bytes) {
        let n_right = check(with(&files, EXTENT, &damaged), &written);
        // One piece of two may be whole; of a file that is too long all are.
        let is_longer = damaged.len() > bytes.len();
        assert!(n_right == 4 || !is_longer, "{n_right}");
        assert!((2..=3).contains(&n_right) || is_longer, "{n_right}");
    }
}

#[test]
fn an_index_with_any_bit_flipped_or_byte_missing_never_gives_what_was_not_written() {
    let (files, written) = folder();
    let bytes = content(&files, "index");
    let mut n_right = [0; 5];
    for damaged in damages(&bytes) {
        n_right[check(with(&files, "index", &damaged), &written)] += 1;
    }
    // None of it, the entries before the damage, or all of it: more bytes at the end do no harm.
    assert!(n_right[0] > 0 && n_right[1] > 0 && n_right[3] > 0, "{n_right:?}");
    assert_eq!((n_right[2], n_right[4]), (0, 1));
}

#[test]
fn a_fingerprint_with_any_bit_flipped_costs_the_cache_and_nothing_else() {
    let (files, written) = folder();
    let bytes = content(&files, "fingerprint");
    let label_bytes = bytes.iter().position(|byte| *byte == b'\n').unwrap();
    for (k, damaged) in damages(&bytes).into_iter().enumerate() {
        let is_of_label = k < label_bytes * 8 && std::str::from_utf8(&damaged).is_ok();
        let n_right = check(with(&files, "fingerprint", &damaged), &written);
        assert_eq!(n_right, if is_of_label && damaged.len() == bytes.len() { 4 } else { 0 });
    }
    let (store, _) = open_in(with(&files, "fingerprint", b"x\ny\n"), PLENTY);
    assert!(store.opening().restarted.is_some());
    assert_eq!(store.stats().n_extents, 0);
}

#[test]
fn a_folder_of_another_fingerprint_is_never_used() {
    let (files, _) = folder();
    let other = kvstore::Fingerprint::new("org/name", [("weights", "0f1e"), ("dtype", "f32")]);
    let opened = kvstore::Store::open_in(Box::new(files.clone()), &other, PLENTY);
    let (store, found) = opened.unwrap();
    assert_eq!((found.count(), store.stats().n_extents), (0, 0));
    assert!(store.opening().restarted.is_some());
    assert_eq!(files.names().unwrap().len(), 2, "its files are gone");
}

#[test]
fn an_extent_of_another_fingerprint_or_id_is_not_read() {
    let (files, _) = folder();
    let bytes = content(&files, EXTENT);
    // The same file under another id, of which the index says the same length and checksum.
    let (store, _) = open_in(files.clone(), PLENTY);
    let pieces = [piece(2, 0, 5), piece(2, 1, 8)];
    write(&store, 5, &[9], 0, &pieces).unwrap();
    drop(store);
    let swapped = with(&files, "0000000000000005.extent", &bytes);
    let (store, found) = open_in(swapped, PLENTY);
    assert_eq!(found.len(), 4);
    assert!(matches!(read(&store, place(5, 0, 5)), Err(Error::Corrupt { .. })));
    assert_eq!(store.stats().n_corrupt, 1);
}

#[test]
fn a_whole_file_that_is_not_the_one_that_the_index_means_is_not_read() {
    let (files, _) = folder();
    let elsewhere = Forgetful::new(4);
    let (store, _) = open_in(elsewhere.clone(), PLENTY);
    write(&store, 2, &[1], 0, &[piece(9, 0, 5), piece(9, 1, 8)]).unwrap();
    let (store, found) = open_in(with(&files, EXTENT, &content(&elsewhere, EXTENT)), PLENTY);
    assert_eq!(found.len(), 3);
    assert!(matches!(read(&store, place(2, 0, 5)), Err(Error::Corrupt { .. })));
}

#[test]
fn entries_of_an_earlier_index_are_none_of_the_later_ones() {
    let files = Forgetful::new(1);
    let (store, _) = open_in(files.clone(), PLENTY);
    // Entries of one length: those of both indexes begin at the same places.
    let tokens = |id: u64| [vec![id as u32], vec![0; 500]].concat();
    let (mut id, mut earlier) = (0, content(&files, "index"));
    while store.stats().index_bytes >= earlier.len() as u64 {
        earlier = content(&files, "index");
        write(&store, id, &tokens(id), 0, &[piece(id, 0, 4)]).unwrap();
        if id % 2 == 1 && id > 1 {
            earlier = content(&files, "index");
            store.remove(&[ExtentId(id - 2), ExtentId(id - 3)]).unwrap();
        }
        id += 1;
    }
    drop(store);
    let later = content(&files, "index");
    let mixed = [&later[..], &earlier[later.len()..]].concat();
    let (store, found) = open_in(with(&files, "index", &mixed), PLENTY);
    assert_eq!(found.iter().map(|f| f.id.0).collect::<Vec<_>>(), [id - 2, id - 1]);
    assert_eq!(store.opening().n_torn_bytes, (earlier.len() - later.len()) as u64);
    assert_eq!(store.opening().n_lost, 0);
}

#[test]
fn a_damaged_extent_can_be_removed_and_its_id_used_again_later() {
    let (files, _) = folder();
    let mut bytes = content(&files, EXTENT);
    *bytes.last_mut().unwrap() ^= 1;
    let damaged = with(&files, EXTENT, &bytes);
    let (store, _) = open_in(damaged.clone(), PLENTY);
    assert!(read(&store, place(2, 0, 5)).is_ok());
    assert!(matches!(read(&store, place(2, 5, 8)), Err(Error::Corrupt { .. })));
    store.remove(&[ExtentId(2), ExtentId(2), ExtentId(77)]).unwrap();
    assert!(matches!(read(&store, place(2, 0, 5)), Err(Error::Invalid { .. })));
    drop(store);
    let (store, found) = open_in(damaged, PLENTY);
    assert_eq!(found.iter().map(|f| f.id.0).collect::<Vec<_>>(), [1, 3]);
    write(&store, 2, &[6], 0, &[piece(2, 7, 5)]).unwrap();
    assert_eq!(read(&store, place(2, 0, 5)).unwrap(), piece(2, 7, 5));
}

#[test]
fn files_that_are_none_of_ours_stay_and_strays_of_ours_go() {
    let (files, _) = folder();
    for name in ["notes.txt", "00000000000000aa.extent", "index.new", "aa.extent", ".extent"] {
        put(&files, name, b"x");
    }
    let (store, found) = open_in(files.clone(), PLENTY);
    assert_eq!((found.len(), store.opening().n_strays), (3, 1));
    let names = files.names().unwrap().into_iter().map(|(name, _)| name).collect::<Vec<_>>();
    let ours = ["0000000000000001", "0000000000000002", "0000000000000003"];
    let mut left = ours.map(|id| format!("{id}.extent")).to_vec();
    left.extend([".extent", "aa.extent", "fingerprint", "index", "notes.txt"].map(str::to_owned));
    left.sort();
    assert_eq!(names, left);
}

#[test]
fn requests_for_what_is_no_piece_are_refused() {
    let (files, _) = folder();
    let (store, _) = open_in(files, PLENTY);
    for (id, offset, n) in
        [(2, 0, 4), (2, 0, 13), (2, 4, 9), (2, 13, 1), (2, u64::MAX, 1), (8, 0, 5), (2, 0, 0)]
    {
        let refused = read(&store, place(id, offset, n));
        assert!(matches!(refused, Err(Error::Invalid { .. })), "{id} {offset} {n}: {refused:?}");
    }
    let mut short = [0; 4];
    assert!(matches!(store.read(place(2, 0, 5), &mut short), Err(Error::Invalid { .. })));
    let whole = read(&store, place(2, 5, 8)).unwrap();
    assert_eq!(whole, piece(2, 1, 8));
    for refused in [
        write(&store, 2, &[1], 0, &[vec![1]]),
        write(&store, 8, &[1], 2, &[vec![1]]),
        write(&store, 8, &[1], 0, &[vec![1], vec![]]),
    ] {
        assert!(matches!(refused, Err(Error::Invalid { .. })), "{refused:?}");
    }
    assert_eq!(store.stats().n_extents, 3);
    let parts = "x".repeat(1 << 16);
    let long = kvstore::Fingerprint::new("", [("weights", parts.as_str())]);
    let opened = kvstore::Store::open_in(Box::new(Forgetful::new(3)), &long, PLENTY);
    assert!(matches!(opened, Err(Error::Invalid { .. })));
}

#[test]
fn random_bytes_in_place_of_any_file_are_no_more_than_a_miss() {
    let (files, written) = folder();
    let names = files.names().unwrap();
    for seed in 0..600 {
        let (name, n_bytes) = &names[seed as usize % names.len()];
        let mut bytes = piece(1_000 + seed, 0, *n_bytes as usize * (seed as usize % 3));
        if seed % 2 == 0 {
            // A beginning that is right leads further in.
            let whole = content(&files, name);
            let n = bytes.len().min(whole.len()) * (seed as usize % 7) / 7;
            bytes[..n].copy_from_slice(&whole[..n]);
        }
        check(with(&files, name, &bytes), &written);
    }
}
