//! The calibration of one layer, head by head.

use super::{CALIBRATE, LayerCalibration, Match};
use crate::checkpoint::values;
use crate::mixer::{Branches, CalibrationParam, CalibrationUpdate, Granularity, LayerInputs, Mixer, Params};
use crate::ops::statistics::{head_products, minus};
use crate::{Error, Result};
use candle_core::Tensor;
use std::collections::BTreeMap;

/// Most that a layer's output is multiplied by for its size.
const MAX_FACTOR: f64 = 16.0;
/// Most that a window's share becomes.
const MAX_WINDOW_GATE: f64 = 0.995;

pub(super) type Tensors = BTreeMap<String, Tensor>;

pub(super) struct Layer<'a> {
    pub mixer: &'a dyn Mixer,
    pub heads: &'a LayerInputs,
    /// Outputs of the attention that is replaced.
    pub target: &'a Tensor,
    pub tensors: Tensors,
}

/// Inner products per head that decide everything: of r = t - o_0 and d, and of o_0.
struct Fit {
    rr: Vec<f64>,
    rd: Vec<f64>,
    dd: Vec<f64>,
    od: Vec<f64>,
    oo: Vec<f64>,
}

impl Fit {
    /// The s of least error, and that error, per head. A negative s is one too: it is what an output that points the
    /// wrong way needs.
    fn best(&self, head: usize) -> (f64, f64) {
        let (rr, rd, dd) = (self.rr[head], self.rd[head], self.dd[head]);
        if dd <= 0.0 || !dd.is_finite() {
            return (0.0, rr);
        }
        (rd / dd, rr - rd * rd / dd)
    }

    /// The factor of the output at which all heads together are as large as a target of square sum `tt`; 1 where there
    /// is none. It goes to the best s, and to o_0 up to the factor that `most` allows each head.
    fn as_large(&self, tt: f64, most: &[f64]) -> f64 {
        let size = |f: f64| -> f64 {
            let of_head = |h: usize| {
                let (o, d) = (f.min(most[h]), f * self.best(h).0);
                o * o * self.oo[h] + 2.0 * o * d * self.od[h] + d * d * self.dd[h]
            };
            (0..most.len()).map(of_head).sum()
        };
        let small = size(1.0) < tt;
        let (mut near, mut far) = (1.0, if small { MAX_FACTOR } else { 1.0 / MAX_FACTOR });
        if (size(far) < tt) == small {
            return 1.0;
        }
        for _ in 0..50 {
            let middle = 0.5 * (near + far);
            *(if (size(middle) < tt) == small { &mut near } else { &mut far }) = middle;
        }
        near
    }
}

impl Layer<'_> {
    pub fn calibrate(&mut self, layer: usize, rule: Match) -> Result<LayerCalibration> {
        let squares = head_products(self.target, self.target)?;
        let (error_before, size_before) = self.distance(&squares)?;
        for parameter in self.mixer.calibration_params() {
            self.search(&parameter)?;
        }
        if let Some(name) = self.mixer.scale().name() {
            let heads = squares.len();
            let fit = self.fit()?;
            let shares = self.shares(heads)?;
            // A window without a learned share stays as it is.
            let most: Vec<f64> = shares.iter().map(|s| s.map_or(1.0, |s| (MAX_WINDOW_GATE / s).max(1.0))).collect();
            let factor = match rule {
                Match::Error => 1.0,
                Match::Size => fit.as_large(squares.iter().sum(), &most),
            };
            let share = |h: usize| shares[h].map(|s| (s, s * factor.min(most[h])));
            // The linear branch has what the window leaves.
            let left = |h: usize| share(h).map_or(1.0, |(old, new)| (1.0 - old) / (1.0 - new));
            let scales: Vec<f32> = (0..heads).map(|h| (factor * left(h) * fit.best(h).0) as f32).collect();
            self.change(name, heads, &|h, old| old * scales[h])?;
            if let Some(name) = self.mixer.window_gate() {
                let logit = |p: f64| (p / (1.0 - p)).ln() as f32;
                self.change(name, heads, &|h, old| share(h).map_or(old, |(_, new)| logit(new)))?;
            }
        }
        let (error_after, size_after) = self.distance(&squares)?;
        Ok(LayerCalibration { layer, error_before, error_after, size_before, size_after })
    }

    /// What is not finite is no result: nothing could be made of it later.
    pub fn require_finite(&self, report: &LayerCalibration) -> Result<()> {
        let LayerCalibration { layer, error_before, error_after, size_before, size_after } = *report;
        let not_finite = |place: String| Error::NonFinite { stage: CALIBRATE.into(), step: 0, place };
        let values = |t: &Tensor| -> Result<Vec<f32>> { Ok(t.flatten_all()?.to_vec1()?) };
        for (name, tensor) in &self.tensors {
            if values(tensor)?.iter().any(|x| !x.is_finite()) {
                return Err(not_finite(format!("`{name}` of layer {layer}")));
            }
        }
        let scores = [error_before, error_after, size_before, size_after];
        if scores.iter().all(|score| score.is_finite()) {
            return Ok(());
        }
        let largest = values(self.target)?
            .iter()
            .fold(0f32, |most, x| if x.is_finite() { most.max(x.abs()) } else { f32::INFINITY });
        Err(not_finite(match largest {
            0.0 => format!("the error of layer {layer}, whose attention gives nothing but zeros in the teacher,"),
            f32::INFINITY => format!("the attention of layer {layer} in the teacher"),
            _ => format!("the error of layer {layer}"),
        }))
    }

    fn output(&self, tensors: &Tensors) -> Result<Tensor> {
        let params = Params(tensors.iter().map(|(name, t)| (name.clone(), t.clone().into())).collect());
        Ok(self.mixer.mix(self.heads, &params, None, Branches::Both)?.value().clone())
    }

    /// Relative squared error, and relative size.
    fn distance(&self, squares: &[f64]) -> Result<(f64, f64)> {
        let output = self.output(&self.tensors)?;
        let error = minus(&output, self.target)?;
        let total = |x: &Tensor| -> Result<f64> { Ok(head_products(x, x)?.iter().sum()) };
        let all: f64 = squares.iter().sum();
        Ok((total(&error)? / all, (total(&output)? / all).sqrt()))
    }

    /// The window's share of every head's output, where it is a learned one.
    fn shares(&self, heads: usize) -> Result<Vec<Option<f64>>> {
        let Some(name) = self.mixer.window_gate() else { return Ok(vec![None; heads]) };
        let logits = values(&self.tensors[name])?;
        Ok(logits.into_iter().map(|x| Some(1.0 / (1.0 + f64::from(-x).exp()))).collect())
    }

    fn fit(&self) -> Result<Fit> {
        let now = self.output(&self.tensors)?;
        let without = match self.mixer.scale().name() {
            Some(name) => {
                let mut silent = self.tensors.clone();
                silent.insert(name.into(), self.tensors[name].zeros_like()?);
                self.output(&silent)?
            }
            None => now.zeros_like()?,
        };
        let (d, r) = (minus(&now, &without)?, minus(self.target, &without)?);
        Ok(Fit {
            rr: head_products(&r, &r)?,
            rd: head_products(&r, &d)?,
            dd: head_products(&d, &d)?,
            od: head_products(&without, &d)?,
            oo: head_products(&without, &without)?,
        })
    }

    /// Error of every head at its best scale; of mixers without one, at their own.
    fn errors(&self) -> Result<Vec<f64>> {
        if self.mixer.scale().name().is_some() {
            let fit = self.fit()?;
            return Ok((0..fit.rr.len()).map(|h| fit.best(h).1).collect());
        }
        let error = minus(&self.output(&self.tensors)?, self.target)?;
        head_products(&error, &error)
    }

    /// Tries a knob's values in all heads at once and leaves each head at its own best.
    fn search(&mut self, parameter: &CalibrationParam) -> Result<()> {
        let start = self.tensors[parameter.tensor].clone();
        let parts = match parameter.granularity {
            Granularity::Head => self.heads.q.value().dim(2)?,
            Granularity::KvHead => self.heads.k.value().dim(2)?,
        };
        let moved = |value: f32| {
            move |old: f32| match parameter.update {
                CalibrationUpdate::Set => value,
                CalibrationUpdate::Multiply => value * old,
            }
        };
        let mut best = vec![(f64::INFINITY, None); parts];
        for value in std::iter::once(None).chain(parameter.values.iter().copied().map(Some)) {
            self.tensors.insert(parameter.tensor.into(), start.clone());
            if let Some(value) = value {
                let change = moved(value);
                self.change(parameter.tensor, parts, &|_, old| change(old))?;
            }
            let errors = self.errors()?;
            for (best, errors) in best.iter_mut().zip(errors.chunks(errors.len() / parts)) {
                let error: f64 = errors.iter().sum();
                // NaN is no improvement.
                if error < best.0 {
                    *best = (error, value);
                }
            }
        }
        self.tensors.insert(parameter.tensor.into(), start);
        self.change(parameter.tensor, parts, &|part, old| best[part].1.map_or(old, |value| moved(value)(old)))
    }

    /// New values of a tensor from old ones; `parts` equal runs of its elements belong to as many heads.
    fn change(&mut self, name: &str, parts: usize, new: &dyn Fn(usize, f32) -> f32) -> Result<()> {
        let tensor = &self.tensors[name];
        let values = values(tensor)?;
        if parts == 0 || !values.len().is_multiple_of(parts) {
            return Err(Error::Internal(format!("`{name}` {:?} has no part for each of {parts} heads", tensor.dims())));
        }
        let run = values.len() / parts;
        let changed: Vec<f32> = values.iter().enumerate().map(|(i, &old)| new(i / run, old)).collect();
        let tensor = Tensor::from_vec(changed, tensor.dims(), tensor.device())?;
        self.tensors.insert(name.into(), tensor);
        Ok(())
    }
}
