//! From numerators and denominators to an output: o = (gamma num_w + num_l) / (gamma den_w + den_l + eps).
//!
//! gamma weighs a softmax window against a linear branch under one joint normaliser (LoLCATs, arXiv 2410.10254). With one branch it is that branch's own quotient. Where the denominator is zero, as in padding,
//! so is the output, and no gradient passes.

use crate::Result;
use crate::ops::cpu::simd::{dot, simd};
use crate::ops::cpu::{Output, Slice};
use crate::ops::tape::{Var, record1};
use candle_core::Tensor;
use rayon::prelude::*;

#[inline(always)]
fn inverse(x: f32) -> f32 {
    if x == 0.0 { 0.0 } else { 1.0 / x }
}

/// num / (den + eps); `num` [B, T, H, V], `den` [B, T, H].
pub fn normalize(num: &Var, den: &Var, eps: f32) -> Result<Var> {
    let width = num.value().dims4()?.3;
    let o = {
        let (ns, ds) = (Slice::of(num.value())?, Slice::of(den.value())?);
        let mut o = Output::unwritten(num.value().dims());
        o.data().par_chunks_mut(width).zip(ns.par_chunks(width)).zip(ds.par_iter()).with_min_len(256).for_each(
            |((o, n), d)| {
                let scale = inverse(d + eps);
                simd!(|| (0..width).for_each(|i| o[i] = n[i] * scale));
            },
        );
        o.tensor()?
    };
    let (den_value, o_value) = (den.value().clone(), o.clone());
    record1(&[num, den], o, move |g| {
        let (ds, os, gs) = (Slice::of(&den_value)?, Slice::of(&o_value)?, Slice::of(&g)?);
        let (mut dn, mut dd) = (Output::unwritten(o_value.dims()), Output::unwritten(den_value.dims()));
        let outputs = dn.data().par_chunks_mut(width).zip(dd.data().par_iter_mut());
        let inputs = gs.par_chunks(width).zip(os.par_chunks(width)).zip(ds.par_iter());
        outputs.zip(inputs).with_min_len(256).for_each(|((dn, dd), ((g, o), d))| {
            let scale = inverse(d + eps);
            simd!(|| {
                (0..width).for_each(|i| dn[i] = g[i] * scale);
                *dd = -scale * dot(g, o);
            });
        });
        Ok(vec![Some(dn.tensor()?), Some(dd.tensor()?)])
    })
}

/// Two branches under one normaliser. `window` and `linear` are (num [B, T, H, V], den [B, T, H]), `gamma` `[H]`.
pub fn joint_normalize(window: (&Var, &Var), linear: (&Var, &Var), gamma: &Var) -> Result<Var> {
    let (batch, tokens, heads, width) = window.0.value().dims4()?;
    let values = [window.0, window.1, linear.0, linear.1, gamma].map(|v| v.value().clone());
    let o = {
        let [nw, dw, nl, dl, gamma] = [0, 1, 2, 3, 4].map(|i| Slice::of(&values[i]));
        let (nw, dw, nl, dl, gamma) = (nw?, dw?, nl?, dl?, gamma?);
        let mut o = Output::unwritten(values[0].dims());
        o.data().par_chunks_mut(heads * width).enumerate().with_min_len(64).for_each(|(row, o)| {
            simd!(|| {
                for h in 0..heads {
                    let i = row * heads + h;
                    let scale = inverse(gamma[h] * dw[i] + dl[i]);
                    let (nw, nl) = (&nw[i * width..][..width], &nl[i * width..][..width]);
                    for (j, o) in o[h * width..][..width].iter_mut().enumerate() {
                        *o = scale * (gamma[h] * nw[j] + nl[j]);
                    }
                }
            });
        });
        o.tensor()?
    };
    let o_value = o.clone();
    let wanted = [window.0.tracked(), window.1.tracked()];
    let inputs = [window.0, window.1, linear.0, linear.1, gamma];
    record1(&inputs, o, move |g| {
        let [nw, dw, dl, gamma] = [0, 1, 3, 4].map(|i| Slice::of(&values[i]));
        let (nw, dw, dl, gamma) = (nw?, dw?, dl?, gamma?);
        let (os, gs) = (Slice::of(&o_value)?, Slice::of(&g)?);
        // g over the joint denominator is the gradient of the linear numerator; the others are multiples of it.
        let (mut d_num, mut d_den) = (Output::unwritten(o_value.dims()), Output::unwritten(values[1].dims()));
        let mut d_gamma = Output::unwritten(&[batch * tokens, heads]);
        let outputs = d_num.data().par_chunks_mut(heads * width).zip(d_den.data().par_chunks_mut(heads));
        outputs.zip(d_gamma.data().par_chunks_mut(heads)).enumerate().with_min_len(64).for_each(
            |(row, ((d_num, d_den), d_gamma))| {
                simd!(|| {
                    for h in 0..heads {
                        let i = row * heads + h;
                        let scale = inverse(gamma[h] * dw[i] + dl[i]);
                        let (g, o) = (&gs[i * width..][..width], &os[i * width..][..width]);
                        let d = &mut d_num[h * width..][..width];
                        (0..width).for_each(|j| d[j] = g[j] * scale);
                        d_den[h] = -scale * dot(g, o);
                        d_gamma[h] = dot(d, &nw[i * width..][..width]) + d_den[h] * dw[i];
                    }
                });
            },
        );
        let mut total = vec![0.0f64; heads];
        for row in d_gamma.data().chunks_exact(heads) {
            for (sum, d) in total.iter_mut().zip(row) {
                *sum += f64::from(*d);
            }
        }
        let d_gamma: Vec<f32> = total.into_iter().map(|d| d as f32).collect();
        let (d_num, d_den) = (d_num.tensor()?, d_den.tensor()?);
        let by_gamma = |x: &Tensor, width: usize| -> Result<Tensor> {
            let xs = Slice::of(x)?;
            let mut y = Output::unwritten(x.dims());
            y.data().par_chunks_mut(heads * width).zip(xs.par_chunks(heads * width)).for_each(|(y, x)| {
                for ((y, x), gamma) in y.chunks_exact_mut(width).zip(x.chunks_exact(width)).zip(gamma.iter()) {
                    y.iter_mut().zip(x).for_each(|(y, x)| *y = gamma * x);
                }
            });
            y.tensor()
        };
        let dw_num = if wanted[0] { Some(by_gamma(&d_num, width)?) } else { None };
        let dw_den = if wanted[1] { Some(by_gamma(&d_den, 1)?) } else { None };
        let d_gamma = Tensor::from_vec(d_gamma, heads, &candle_core::Device::Cpu)?;
        Ok(vec![dw_num, dw_den, Some(d_num), Some(d_den), Some(d_gamma)])
    })
}
