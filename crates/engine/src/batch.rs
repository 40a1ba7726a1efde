//! One pass for many sequences, a token of each: the pass that decodes.
//!
//! What a pass samples stays on the device until somebody reads it, and the next pass takes it from
//! there: the device does not wait for the host. What rows with a grammar may draw is worked out by
//! the host while the device computes their logits.

use std::cell::OnceCell;
use std::rc::Rc;

use mlx::{Array, Dtype};
use models::Loaded;

use crate::Result;
use crate::cache::PrefixCache;
use crate::sampler::{Sampled, sample};
use crate::sequence::Sequence;

/// What one pass sampled, a row for each sequence.
#[derive(Debug)]
pub(crate) struct Batch {
    sampled: Sampled,
    read: OnceCell<Vec<Drawn>>,
}

/// A row of it that its sequence has not read yet.
#[derive(Clone, Debug)]
pub(crate) struct Pending {
    batch: Rc<Batch>,
    row: usize,
}

/// One token on the host.
#[derive(Clone, Debug)]
pub(crate) struct Drawn {
    pub token: u32,
    pub logprob: Option<f32>,
    /// Best tokens first, as many as any row of its pass asked for.
    pub top: Vec<(u32, f32)>,
}

impl Batch {
    /// A handle for each of `n` rows.
    pub fn rows(sampled: Sampled, n: usize) -> impl Iterator<Item = Pending> {
        let batch = Rc::new(Self { sampled, read: OnceCell::new() });
        (0..n).map(move |row| Pending { batch: Rc::clone(&batch), row })
    }

    fn n_rows(&self) -> usize {
        self.sampled.tokens.dim(0) as usize
    }

    fn values(&self) -> Result<Vec<Drawn>> {
        let sampled = &self.sampled;
        let tokens = sampled.tokens.to_vec::<u32>()?;
        let logprobs = sampled.logprobs.as_ref().map(|l| l.to_vec::<f32>()).transpose()?;
        let mut best = match &sampled.best {
            Some((ids, values)) => {
                let n = ids.dim(1).max(1) as usize;
                let (ids, values) = (ids.to_vec::<u32>()?, values.to_vec::<f32>()?);
                let pairs = ids.into_iter().zip(values).collect::<Vec<_>>();
                pairs.chunks(n).map(<[_]>::to_vec).collect::<Vec<_>>().into_iter()
            }
            None => Vec::new().into_iter(),
        };
        let drawn = tokens.into_iter().enumerate().map(|(row, token)| {
            let mut top = best.next().unwrap_or_default();
            top.sort_by(|a: &(u32, f32), b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
            Drawn { token, logprob: logprobs.as_ref().map(|l| l[row]), top }
        });
        Ok(drawn.collect())
    }
}

impl Pending {
    /// Waits for the token.
    pub fn read(&self) -> Result<Drawn> {
        let values = match self.batch.read.get() {
            Some(values) => values,
            None => {
                let values = self.batch.values()?;
                self.batch.read.get_or_init(|| values)
            }
        };
        Ok(values[self.row].clone())
    }
}

/// Runs the model on the newest token of every sequence and begins to sample what follows it. There
/// is room for one more token of each.
///
/// # Errors
/// The device fails, memory first of all.
pub(crate) fn issue(
    rows: &mut [&mut Sequence],
    loaded: &Loaded,
    cache: &mut PrefixCache,
) -> Result<()> {
    let ids = newest(rows)?;
    let seqs = rows.iter().map(|row| row.seq()).collect::<Vec<_>>();
    let passed = cache.pass(loaded, &ids, &seqs, &[])?;
    let logits = loaded.model.logits(&passed.hidden)?.squeeze(&[1])?;
    if rows.iter().any(|row| row.is_constrained()) {
        cache.issue([&logits].into_iter())?;
        rows.iter_mut().for_each(|row| row.constrain());
    }
    let settings = rows.iter().map(|row| row.sampler_row()).collect::<Vec<_>>();
    let sampled = sample(&logits, &settings)?;
    cache.issue(sampled.arrays())?;
    for (row, pending) in rows.iter_mut().zip(Batch::rows(sampled, seqs.len())) {
        row.issued(pending, cache)?;
    }
    Ok(())
}

/// The newest token of every row, i32 `[B, 1]`: from the device where the host has not read it.
fn newest(rows: &[&mut Sequence]) -> Result<Array> {
    let from_same = |a: &&mut Sequence, b: &&mut Sequence| match (a.unread(), b.unread()) {
        (Some(a), Some(b)) => Rc::ptr_eq(&a.batch, &b.batch),
        (None, None) => true,
        _ => false,
    };
    let runs = rows.chunk_by(from_same).map(|run| {
        let Some(Pending { batch, .. }) = run[0].unread() else {
            let ids = run.iter().map(|row| row.newest() as i32).collect::<Vec<_>>();
            return Ok(Array::staged(&ids, &[ids.len() as i32, 1])?);
        };
        let indices = run.iter().filter_map(|row| row.unread()).map(|pending| pending.row as i32);
        let indices = indices.collect::<Vec<_>>();
        let tokens = &batch.sampled.tokens;
        let n = batch.n_rows() as i32;
        let tokens = match indices.iter().copied().eq(0..n) {
            true => tokens.clone(),
            false => tokens.take(&Array::staged(&indices, &[indices.len() as i32])?, 0)?,
        };
        Ok(tokens.astype(Dtype::I32)?.expand_dims(&[1])?)
    });
    let runs = runs.collect::<Result<Vec<_>>>()?;
    match &runs[..] {
        [one] => Ok(one.clone()),
        _ => Ok(mlx::concatenate(&runs.iter().collect::<Vec<_>>(), 0)?),
    }
}
