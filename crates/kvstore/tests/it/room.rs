//! Quotas, full disks, errors of the index, and an index that grows no longer than it must.

use std::io::ErrorKind;

use kvcache::{ExtentId, Token};
use kvstore::Error;
use kvstore::files::Files;

use crate::forgetful::{Fault, Forgetful};
use crate::{PLENTY, open_in, piece, place, read, write};

#[test]
fn a_quota_bounds_files_and_index_and_what_goes_makes_room() {
    let files = Forgetful::new(1);
    let (store, _) = open_in(files.clone(), 1_000);
    write(&store, 1, &[1], 0, &[piece(1, 0, 300)]).unwrap();
    write(&store, 2, &[2], 0, &[piece(2, 0, 300)]).unwrap();
    let stats = store.stats();
    // Headers of 48 bytes and 16 a piece; 44 of the index and 12 + 50 + 4 an entry.
    assert_eq!((stats.extent_bytes, stats.index_bytes), (2 * 364, 44 + 2 * 66));
    match write(&store, 3, &[3], 0, &[piece(3, 0, 300)]) {
        Err(Error::Full { wanted_bytes: 430, free_bytes: Some(96) }) => {}
        other => panic!("{other:?}"),
    }
    store.remove(&[ExtentId(1)]).unwrap();
    write(&store, 3, &[3], 0, &[piece(3, 0, 260)]).unwrap();
    assert_eq!(read(&store, place(3, 0, 260)).unwrap(), piece(3, 0, 260));
    drop(store);
    let (store, found) = open_in(files, 10);
    assert_eq!(found.len(), 2, "a smaller quota deletes nothing");
    assert!(matches!(write(&store, 4, &[4], 0, &[vec![1]]), Err(Error::Full { .. })));
}

#[test]
fn what_is_cut_off_an_extent_makes_room_and_stays_off() {
    let files = Forgetful::new(1);
    let (store, _) = open_in(files.clone(), 1_000);
    let pieces = [0, 1, 2].map(|k| piece(1, k, 100));
    write(&store, 1, &[1, 2, 3], 0, &pieces).unwrap();
    let whole_bytes = 48 + 3 * 16 + 300;
    assert_eq!(store.stats().extent_bytes, whole_bytes);
    assert!(matches!(write(&store, 2, &[2], 0, &[vec![1; 500]]), Err(Error::Full { .. })));
    // Not at all, and less than an entry about it takes.
    store.cut(&[(ExtentId(1), 300), (ExtentId(1), 280), (ExtentId(7), 0)]).unwrap();
    assert_eq!(store.stats().extent_bytes, whole_bytes);
    store.cut(&[(ExtentId(1), 100)]).unwrap();
    assert_eq!(store.stats().extent_bytes, whole_bytes - 200);
    write(&store, 2, &[2], 0, &[vec![1; 300]]).unwrap();
    drop(store);
    files.crash();
    let (store, found) = open_in(files.clone(), 1_000);
    let kept = found.iter().map(|f| (f.id.0, f.piece_bytes)).collect::<Vec<_>>();
    assert_eq!(kept, [(2, 300), (1, 100)]);
    assert_eq!(read(&store, place(1, 0, 100)).unwrap(), pieces[0]);
    assert!(matches!(read(&store, place(1, 100, 100)), Err(Error::Invalid { .. })));
    let (_, n_bytes) = &files.names().unwrap()[0];
    assert_eq!(*n_bytes, whole_bytes - 200);
}

#[test]
fn a_full_disk_is_a_refusal_at_every_write_and_goes_on_when_there_is_room() {
    for left in 0..12 {
        let files = Forgetful::new(left);
        let (store, _) = open_in(files.clone(), PLENTY);
        write(&store, 1, &[1, 2], 0, &[piece(1, 0, 30)]).unwrap();
        files.fail_after(Some((left as usize, Fault::Full)));
        let mut id = 2;
        while write(&store, id, &[1, id as Token], 1, &[piece(id, 0, 30)]).is_ok() {
            id += 1;
        }
        let refused = write(&store, id, &[9], 0, &[piece(id, 0, 30)]);
        assert!(matches!(refused, Err(Error::Full { free_bytes: None, .. })), "{refused:?}");
        // The log has no room for it either; it hears of it later.
        assert!(matches!(store.remove(&[ExtentId(1)]), Err(Error::Full { .. })));
        assert!(matches!(read(&store, place(1, 0, 30)), Err(Error::Invalid { .. })));
        files.fail_after(None);
        write(&store, id, &[9], 0, &[piece(id, 0, 30)]).unwrap();
        drop(store);
        files.crash();
        let (store, found) = open_in(files, PLENTY);
        assert_eq!(found.len() as u64, id - 1, "{found:?}");
        for id in 2..=id {
            assert_eq!(read(&store, place(id, 0, 30)).unwrap(), piece(id, 0, 30));
        }
    }
}

#[test]
fn an_error_of_an_extents_file_costs_that_extent_and_one_of_the_index_all_writing() {
    // Create, header, piece, sync of the file and of the name; entry, its sync.
    for (left, is_latched) in [0, 1, 2, 3, 4, 5, 6].map(|left| (left, left >= 5)) {
        let files = Forgetful::new(left);
        let (store, _) = open_in(files.clone(), PLENTY);
        write(&store, 1, &[1, 2], 0, &[piece(1, 0, 30)]).unwrap();
        files.fail_after(Some((left as usize, Fault::Once(ErrorKind::Other))));
        assert!(matches!(write(&store, 2, &[3], 0, &[piece(2, 0, 30)]), Err(Error::Io { .. })));
        assert_eq!(store.stats().is_latched, is_latched, "{left}");
        let names = files.names().unwrap().into_iter().map(|(name, _)| name);
        assert_eq!(names.filter(|name| name.ends_with(".extent")).count(), 1, "{left}");
        let next = write(&store, 3, &[4], 0, &[piece(3, 0, 30)]);
        match is_latched {
            true => assert!(matches!(next, Err(Error::Latched))),
            false => next.unwrap(),
        }
        assert_eq!(read(&store, place(1, 0, 30)).unwrap(), piece(1, 0, 30));
        assert_eq!(store.remove(&[ExtentId(1)]).is_err(), is_latched);
        drop(store);
        let (store, found) = open_in(files, PLENTY);
        assert_eq!(found.len(), usize::from(!is_latched), "its file is gone in any case");
        write(&store, 4, &[5], 0, &[piece(4, 0, 30)]).unwrap();
    }
}

#[test]
fn an_index_of_which_most_is_dead_is_written_anew() {
    let files = Forgetful::new(1);
    let (store, _) = open_in(files.clone(), PLENTY);
    let tokens = |id: u64| (0..40).map(|k| (id * 100 + k) as Token).collect::<Vec<_>>();
    let mut longest = 0;
    for id in 1..500 {
        write(&store, id, &tokens(id), 0, &[piece(id, 0, 3)]).unwrap();
        if id > 3 {
            store.remove(&[ExtentId(id - 3)]).unwrap();
        }
        longest = longest.max(store.stats().index_bytes);
    }
    // An entry has 12 + 50 + 160 bytes.
    assert!(longest < 2 * 4 * 222 + 4_096 + 500, "{longest}");
    drop(store);
    let (store, found) = open_in(files, PLENTY);
    assert_eq!(found.iter().map(|f| f.id.0).collect::<Vec<_>>(), [497, 498, 499]);
    assert!(found.iter().all(|f| f.record.tokens == tokens(f.id.0)));
    assert_eq!(read(&store, place(498, 0, 3)).unwrap(), piece(498, 0, 3));
}

#[test]
fn fifty_checkpoints_of_a_conversation_take_its_tokens_once() {
    let files = Forgetful::new(1);
    let (store, _) = open_in(files.clone(), PLENTY);
    let tokens = (0..100_000).collect::<Vec<Token>>();
    for k in 1..=50 {
        write(&store, k, &tokens[..2_000 * k as usize], 2_000 * (k as usize - 1), &[vec![1]])
            .unwrap();
    }
    assert_eq!(store.stats().index_bytes, 44 + 50 * (12 + 50) + 4 * 100_000);
    assert_eq!(store.stats().n_tokens, 100_000);
    drop(store);
    let (_, found) = open_in(files, PLENTY);
    assert!(found.iter().map(|f| f.record.tokens.len()).eq((1..=50).map(|k| 2_000 * k)));
    assert!(found.iter().all(|f| f.record.tokens[..] == tokens[..f.record.tokens.len()]));
}
