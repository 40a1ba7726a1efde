//! Real folders: who may see them, who has them, what is below a root, and deleting it.

use std::fs;
use std::path::Path;

use kvstore::{Error, Fingerprint, FolderStats, Store, flush, list};

use crate::{PLENTY, fingerprint, open, piece, place, read, write};

fn other() -> Fingerprint {
    Fingerprint::new("org/other", [("weights", "77")])
}

/// Two fingerprints, of which the first has two extents.
fn fill(root: &Path) {
    let (store, _) = open(root).unwrap();
    write(&store, 1, &[1, 2, 3], 0, &[piece(1, 0, 100)]).unwrap();
    write(&store, 2, &[1, 2, 3, 4], 3, &[piece(2, 0, 100)]).unwrap();
    let (store, _) = Store::open(root, &other(), PLENTY).unwrap();
    write(&store, 1, &[9], 0, &[piece(1, 0, 10)]).unwrap();
}

#[test]
fn a_folder_is_found_again_and_another_fingerprint_has_its_own() {
    let root = tempfile::tempdir().unwrap();
    let root = root.path().join("not/there");
    fill(&root);
    let (store, found) = open(&root).unwrap();
    assert_eq!(found.map(|f| (f.id.0, f.n_bytes)).collect::<Vec<_>>(), [(1, 164), (2, 164)]);
    assert_eq!(read(&store, place(2, 0, 100)).unwrap(), piece(2, 0, 100));
    assert_eq!(store.opening(), kvstore::Opening::default());
}

#[test]
fn the_second_to_open_a_folder_is_told_that_it_is_locked() {
    let root = tempfile::tempdir().unwrap();
    let (first, _) = open(root.path()).unwrap();
    assert!(matches!(open(root.path()), Err(Error::Locked { .. })));
    assert!(Store::open(root.path(), &other(), PLENTY).is_ok());
    write(&first, 1, &[1], 0, &[vec![1]]).unwrap();
    drop(first);
    assert_eq!(open(root.path()).unwrap().1.count(), 1);
}

#[cfg(unix)]
#[test]
fn only_the_owner_may_see_anything() {
    use std::os::unix::fs::PermissionsExt;
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("cache");
    fs::create_dir(&root).unwrap();
    fs::set_permissions(&root, fs::Permissions::from_mode(0o755)).unwrap();
    fill(&root);
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    let (mut folders, mut n_files) = (vec![root], 0);
    while let Some(folder) = folders.pop() {
        assert_eq!(mode(&folder), 0o700, "{}", folder.display());
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else {
                assert_eq!(mode(&path), 0o600, "{}", path.display());
                n_files += 1;
            }
        }
    }
    assert_eq!(n_files, 1 + 5 + 4);
}

#[test]
fn a_list_says_what_there_is_and_who_uses_it() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path();
    assert_eq!(list(&root.join("absent")).unwrap(), []);
    assert_eq!(list(root).unwrap(), []);
    fill(root);
    fs::create_dir(root.join("0123")).unwrap();
    let broken = "f".repeat(32);
    fs::create_dir(root.join(&broken)).unwrap();
    let (_store, _) = Store::open(root, &other(), PLENTY).unwrap();
    let found = list(root).unwrap();
    let of = |name: &str| found.iter().find(|f| f.folder == name).unwrap();
    assert_eq!(found.len(), 3);
    let first = of(&fingerprint().folder());
    let expected = FolderStats {
        folder: fingerprint().folder(),
        label: "org/name".into(),
        fingerprint: "kvstore: 2\nweights: 0f1e\ndtype: bf16\n".into(),
        n_extents: 2,
        n_tokens: 4,
        // Two extents; the index with 44, 12 + 50 + 12 and 12 + 50 + 4; the fingerprint.
        n_bytes: 2 * 164 + 44 + 74 + 66 + 9 + 37,
        last_used: first.last_used,
        is_in_use: false,
        problem: None,
    };
    assert_eq!(*first, expected);
    assert!(first.last_used.is_some());
    assert!(of(&other().folder()).is_in_use);
    assert!(of(&broken).problem.is_some());
    fs::write(root.join(fingerprint().folder()).join("index"), "no index").unwrap();
    let damaged = list(root).unwrap();
    let damaged = damaged.iter().find(|f| f.folder == fingerprint().folder()).unwrap();
    assert_eq!(damaged.problem.as_deref(), Some("its index is damaged"));
}

#[test]
fn a_flush_deletes_what_is_chosen_and_not_in_use_and_follows_no_links() {
    let dir = tempfile::tempdir().unwrap();
    let (root, outside) = (dir.path().join("cache"), dir.path().join("outside"));
    fill(&root);
    fs::create_dir(&outside).unwrap();
    fs::write(outside.join("index"), "kept").unwrap();
    #[cfg(unix)]
    std::os::unix::fs::symlink(&outside, root.join("e".repeat(32))).unwrap();
    assert_eq!(flush(&root, |_| false).unwrap().len(), 0);
    let (store, _) = Store::open(&root, &other(), PLENTY).unwrap();
    let mut flushed = flush(&root, |_| true).unwrap();
    flushed.sort_by_key(|f| f.stats.is_in_use);
    let gone = flushed.iter().map(|f| (f.stats.label.as_str(), f.result.as_ref().unwrap()));
    assert_eq!(gone.collect::<Vec<_>>(), [("org/name", &true), ("org/other", &false)]);
    assert!(!root.join(fingerprint().folder()).exists());
    assert_eq!(read(&store, place(1, 0, 10)).unwrap(), piece(1, 0, 10));
    drop(store);
    flush(&root, |stats| stats.label == "org/other").unwrap();
    assert_eq!(list(&root).unwrap(), []);
    assert!(outside.join("index").exists());
    assert_eq!(open(&root).unwrap().1.count(), 0, "a deleted folder can be made again");
}

#[test]
fn many_threads_read_while_extents_come_and_go() {
    let root = tempfile::tempdir().unwrap();
    let (store, _) = open(root.path()).unwrap();
    let pieces = |id: u64| (0..3).map(|k| piece(id, k, 700)).collect::<Vec<_>>();
    // More than stay open.
    for id in 0..24 {
        write(&store, id, &[id as u32], 0, &pieces(id)).unwrap();
    }
    std::thread::scope(|scope| {
        for reader in 0..4 {
            let store = &store;
            scope.spawn(move || {
                for k in 0..600 {
                    let (id, piece_idx) = ((k * 7 + reader) % 24, k % 3);
                    let bytes = read(store, place(id, 700 * piece_idx, 700)).unwrap();
                    assert!(bytes == piece(id, piece_idx, 700));
                }
            });
        }
        for id in 24..40 {
            write(&store, id, &[id as u32], 0, &pieces(id)).unwrap();
            store.remove(&[kvcache::ExtentId(id)]).unwrap();
            assert!(matches!(read(&store, place(id, 0, 700)), Err(Error::Invalid { .. })));
        }
    });
    assert_eq!(store.stats().n_read_bytes, 4 * 600 * 700);
}
