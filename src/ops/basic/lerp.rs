//! Two outputs in shares: o = gamma w + (1 - gamma) l, gamma = sigmoid(factor), one factor per head.

use crate::Result;
use crate::ops::cpu::simd::{sigmoid, simd};
use crate::ops::cpu::{Output, Slice};
use crate::ops::tape::{Var, record1};
use rayon::prelude::*;

/// `w` and `l` [B, T, H, V], `factor` `[H]`.
pub fn lerp(w: &Var, l: &Var, factor: &Var) -> Result<Var> {
    let (_, _, heads, width) = w.value().dims4()?;
    let values = [w, l].map(|x| x.value().clone());
    let gamma: Vec<f32> = Slice::of(factor.value())?.iter().map(|&f| sigmoid(f)).collect();
    let o = {
        let (ws, ls) = (Slice::of(&values[0])?, Slice::of(&values[1])?);
        let mut o = Output::unwritten(values[0].dims());
        let rows = o.data().par_chunks_mut(width).zip(ws.par_chunks(width)).zip(ls.par_chunks(width));
        rows.enumerate().with_min_len(256).for_each(|(i, ((o, w), l))| {
            let share = gamma[i % heads];
            simd(|| (0..width).for_each(|j| o[j] = l[j] + share * (w[j] - l[j])));
        });
        o.tensor()?
    };
    let learned = factor.tracked();
    record1(&[w, l, factor], o, move |g| {
        let (ws, ls) = (Slice::of(&values[0])?, Slice::of(&values[1])?);
        let gs = Slice::of(&g)?;
        let (mut dw, mut dl) = (Output::unwritten(g.dims()), Output::unwritten(g.dims()));
        let rows = dw.data().par_chunks_mut(width).zip(dl.data().par_chunks_mut(width)).zip(gs.par_chunks(width));
        rows.enumerate().with_min_len(256).for_each(|(i, ((dw, dl), g))| {
            let share = gamma[i % heads];
            simd(|| {
                for j in 0..width {
                    dw[j] = share * g[j];
                    dl[j] = g[j] - dw[j];
                }
            });
        });
        let mut d_factor = Output::zeros(&[heads]);
        if learned {
            let along = |h: usize| -> f64 {
                let rows = gs.chunks_exact(width).zip(ws.chunks_exact(width)).zip(ls.chunks_exact(width));
                let of_head = rows.skip(h).step_by(heads);
                let row = |((g, w), l): ((&[f32], &[f32]), &[f32])| -> f32 {
                    simd(|| g.iter().zip(w).zip(l).map(|((g, w), l)| g * (w - l)).sum())
                };
                of_head.map(|row_of| f64::from(row(row_of))).sum()
            };
            let slope = |h: usize| gamma[h] * (1.0 - gamma[h]);
            d_factor.data().par_iter_mut().enumerate().for_each(|(h, d)| *d = slope(h) * along(h) as f32);
        }
        Ok(vec![Some(dw.tensor()?), Some(dl.tensor()?), Some(d_factor.tensor()?)])
    })
}
