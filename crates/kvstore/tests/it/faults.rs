//! Disks that fail: at every change of a file, and at every look at one.

use std::io::ErrorKind;

use kvstore::{Error, Store};

use crate::acts::{Outcome, run_with};
use crate::forgetful::{Fault, Forgetful};
use crate::{PLENTY, fingerprint, open_in, piece, place, read, write};

#[test]
fn a_fault_at_any_change_costs_what_was_under_way_and_nothing_else() {
    let faults = [
        Fault::Once(ErrorKind::Other),
        Fault::Once(ErrorKind::StorageFull),
        Fault::Full,
        Fault::Stop,
    ];
    let mut sum = Outcome::default();
    let mut n_changes = 0;
    for (fault, machine_stops) in faults.into_iter().flat_map(|f| [(f, false), (f, true)]) {
        let mut left = 0;
        while let Some(outcome) = run_with(left, fault, machine_stops) {
            sum.add(&outcome);
            left += 1;
        }
        n_changes = left.max(n_changes);
    }
    // A folder and its index; an extent takes five changes and its entry two, a removal three.
    assert!(n_changes > 10 + 8 * 7 + 7 * 3, "{n_changes}");
    assert!(sum.n_full > 100 && sum.n_latched > 20 && sum.n_failed_writes > 50, "{sum:?}");
    assert!(sum.n_rewritten > 100 && sum.n_failed_opens > 10, "{sum:?}");
}

#[test]
fn an_error_at_any_look_is_told_and_the_next_look_finds_all() {
    let files = Forgetful::new(1);
    let (store, _) = open_in(files.clone(), PLENTY);
    write(&store, 1, &[1, 2, 3], 0, &[piece(1, 0, 9)]).unwrap();
    write(&store, 2, &[1, 2, 3, 4], 3, &[piece(2, 0, 5), piece(2, 1, 8)]).unwrap();
    drop(store);
    let wanted = [(1, 0, piece(1, 0, 9)), (2, 0, piece(2, 0, 5)), (2, 5, piece(2, 1, 8))];
    let read_all = |store: &Store| {
        let mut n_failed = 0;
        for (id, offset, bytes) in &wanted {
            match read(store, place(*id, *offset, bytes.len() as u64)) {
                Ok(found) => assert_eq!(found, *bytes),
                Err(Error::Io { .. }) => n_failed += 1,
                Err(error) => panic!("{error}"),
            }
        }
        n_failed
    };
    let (mut n_failed_opens, mut n_failed_reads) = (0, 0);
    for left in 0.. {
        files.fail_look_after(Some(left));
        match Store::open_in(Box::new(files.clone()), &fingerprint(), PLENTY) {
            Err(Error::Io { .. }) => n_failed_opens += 1,
            Err(error) => panic!("{error}"),
            Ok((store, found)) => {
                assert_eq!(found.count(), 2);
                n_failed_reads += read_all(&store);
                let was_met = files.fail_look_after(None);
                assert_eq!(read_all(&store), 0, "it is not the store that is damaged");
                assert_eq!(store.stats().n_corrupt, 0);
                if !was_met {
                    break;
                }
            }
        }
    }
    // Names, the fingerprint's file with its length and text, the index with its; each extent is
    // opened, measured and its header read in two, then every piece.
    assert_eq!((n_failed_opens, n_failed_reads), (7, 2 * 4 + 3));
}
