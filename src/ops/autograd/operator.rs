//! The one place that chooses kernels by device, and records what they did.
//!
//! An [`Operator`] computes its outputs and its inputs' gradients by kernels of a device. A CUDA kernel becomes a pair
//! of methods beside the CPU's and an argument of [`on_device`]; what calls an operator stays as it is.

use crate::ops::cpu::Output;
use crate::ops::tape::{Var, record};
use crate::{Error, Result};
use candle_core::{Device, Tensor};

/// A function of tensors with hand-written gradients.
pub(crate) trait Operator: 'static {
    /// For messages.
    const NAME: &'static str;
    /// What the forward pass leaves for the backward pass beside the inputs.
    type Kept: 'static;

    /// Outputs. `keep`: a backward pass may follow; without it nothing need be kept.
    fn forward_cpu(&self, inputs: &[Tensor], keep: bool) -> Result<(Vec<Tensor>, Self::Kept)>;

    /// The gradients of all inputs, of which those not `wanted` are dropped, from those of the outputs.
    fn backward_cpu(
        &self,
        inputs: &[Tensor],
        kept: Self::Kept,
        wanted: &[bool],
        gradients: &[Tensor],
    ) -> Result<Vec<Output>>;
}

/// Runs the kernel of the device that `tensor` lies on.
pub(crate) fn on_device<T>(name: &str, tensor: &Tensor, cpu: impl FnOnce() -> Result<T>) -> Result<T> {
    match tensor.device() {
        Device::Cpu => cpu(),
        device => Err(Error::Internal(format!("{name} has no kernel for {:?}", device.location()))),
    }
}

/// The outputs of an operator, recorded where an input is tracked.
pub(crate) fn apply<O: Operator>(operator: O, inputs: &[&Var]) -> Result<Vec<Var>> {
    let values: Vec<Tensor> = inputs.iter().map(|x| x.value().clone()).collect();
    let wanted: Vec<bool> = inputs.iter().map(|x| x.tracked()).collect();
    let (outputs, kept) = on_device(O::NAME, &values[0], || operator.forward_cpu(&values, wanted.contains(&true)))?;
    let dims: Vec<Vec<usize>> = outputs.iter().map(|x| x.dims().to_vec()).collect();
    record(inputs, outputs, move |gradients| {
        let given = gradients.into_iter().zip(&dims);
        let gradients = given.map(|(g, dims)| g.map_or_else(|| Output::zeros(dims).tensor(), |g| Ok(g.contiguous()?)));
        let gradients = gradients.collect::<Result<Vec<_>>>()?;
        let found = on_device(O::NAME, &values[0], || operator.backward_cpu(&values, kept, &wanted, &gradients))?;
        let keep = |(want, d): (&bool, Output)| if *want { d.tensor().map(Some) } else { Ok(None) };
        wanted.iter().zip(found).map(keep).collect()
    })
}
