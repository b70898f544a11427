//! The largest element of each row, the last dim. Its gradient goes to the first element that attains it.

use crate::Result;
use crate::ops::cpu::simd::max;
use crate::ops::cpu::{Output, Slice};
use crate::ops::tape::{Var, record1};
use rayon::prelude::*;

/// Elements of one task, roughly.
const BLOCK: usize = 1 << 13;

/// `x` [.., K] -> [.., 1].
pub fn row_max(x: &Var) -> Result<Var> {
    let mut short = x.value().dims().to_vec();
    let width = short.pop().unwrap_or(1).max(1);
    short.push(1);
    let rows = (BLOCK / width).max(1);
    let y = {
        let xs = Slice::of(x.value())?;
        let mut y = Output::unwritten(&short);
        y.data().par_chunks_mut(rows).zip(xs.par_chunks(rows * width)).for_each(|(y, x)| {
            y.iter_mut().zip(x.chunks_exact(width)).for_each(|(y, x)| *y = max(x));
        });
        y.tensor()?
    };
    let (value, largest) = (x.value().clone(), y.clone());
    record1(&[x], y, move |g| {
        let (xs, ys, gs) = (Slice::of(&value)?, Slice::of(&largest)?, Slice::of(&g)?);
        let mut dx = Output::zeros(value.dims());
        let inputs = xs.par_chunks(width).zip(ys.par_iter()).zip(gs.par_iter());
        dx.data().par_chunks_mut(width).zip(inputs).with_min_len(rows).for_each(|(dx, ((x, y), g))| {
            let first = x.iter().position(|x| x == y).unwrap_or(0);
            dx[first] = *g;
        });
        Ok(vec![Some(dx.tensor()?)])
    })
}
