//! AdamW over named tensors: groups, clipping by the global norm, moments that can be saved and restored.

use super::settings::Optimizer;
use crate::ops::adamw::{Update, adamw};
use crate::ops::statistics::square_sum;
use crate::{Error, Result};
use candle_core::Tensor;
use std::collections::BTreeMap;

/// Tensors that share a rate and a decay. Membership is by full name, never by a part of one.
#[derive(Debug, Clone, PartialEq)]
pub struct Group {
    pub names: Vec<String>,
    /// Multiplies the scheduled rate.
    pub lr_scale: f64,
    pub weight_decay: f64,
}

/// The optimiser and its moments, in f32.
pub struct AdamW {
    settings: Optimizer,
    groups: Vec<Group>,
    moments: BTreeMap<String, [Tensor; 2]>,
    step: u64,
}

impl AdamW {
    pub fn new(settings: Optimizer, groups: Vec<Group>) -> Self {
        AdamW { settings, groups, moments: BTreeMap::new(), step: 0 }
    }

    /// Every tensor that it trains.
    pub fn names(&self) -> impl Iterator<Item = &String> {
        self.groups.iter().flat_map(|g| &g.names)
    }

    /// One update of `tensors` in place with the scheduled rate `lr`; returns the gradients' global norm before
    /// clipping. Nothing is changed when a gradient is missing or not finite: the error's text names the tensor.
    pub fn update(
        &mut self,
        tensors: &mut BTreeMap<String, Tensor>,
        gradients: &BTreeMap<String, Tensor>,
        lr: f64,
    ) -> Result<f64, Failure> {
        let mut total = 0.0;
        for name in self.names() {
            let gradient = gradients.get(name).ok_or_else(|| Failure::Missing(name.clone()))?;
            let square = square_sum(gradient)?;
            if !square.is_finite() {
                return Err(Failure::NotFinite(name.clone()));
            }
            total += square;
        }
        let norm = total.sqrt();
        // torch's clip_grad_norm_, its 1e-6 included.
        let scale = self.settings.clip.map_or(1.0, |clip| (clip / (norm + 1e-6)).min(1.0));
        self.step += 1;
        for group in &self.groups {
            let update = Update {
                lr: lr * group.lr_scale,
                betas: self.settings.betas,
                eps: self.settings.eps,
                weight_decay: group.weight_decay,
                step: self.step,
                scale,
            };
            for name in &group.names {
                let old = tensors.get(name).ok_or_else(|| Failure::Missing(name.clone()))?;
                let zero = || Ok([old.zeros_like()?, old.zeros_like()?]) as Result<_>;
                let [m, v] = self.moments.remove(name).map_or_else(zero, Ok)?;
                let [p, m, v] = adamw(old, &gradients[name], &m, &v, update)?;
                tensors.insert(name.clone(), p);
                self.moments.insert(name.clone(), [m, v]);
            }
        }
        Ok(norm)
    }

    /// Moments as `m.NAME` and `v.NAME`.
    pub fn state(&self) -> BTreeMap<String, Tensor> {
        let pairs = self
            .moments
            .iter()
            .flat_map(|(name, [m, v])| [(format!("m.{name}"), m.clone()), (format!("v.{name}"), v.clone())]);
        pairs.collect()
    }

    /// Goes on from what [`AdamW::state`] gave after `step` updates.
    pub fn restore(&mut self, state: &BTreeMap<String, Tensor>, step: u64) -> Result<()> {
        let get = |kind: &str, name: &String| {
            let key = format!("{kind}.{name}");
            state.get(&key).cloned().ok_or_else(|| Error::Internal(format!("the saved optimiser has no `{key}`")))
        };
        let names: Vec<String> = self.names().cloned().collect();
        self.step = step;
        self.moments.clear();
        if step > 0 {
            for name in names {
                let pair = [get("m", &name)?, get("v", &name)?];
                self.moments.insert(name, pair);
            }
        }
        Ok(())
    }
}

/// Why an update did not happen.
#[derive(Debug)]
pub enum Failure {
    Missing(String),
    NotFinite(String),
    Other(Error),
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Failure::Other(error)
    }
}

impl From<candle_core::Error> for Failure {
    fn from(error: candle_core::Error) -> Self {
        Failure::Other(error.into())
    }
}
