//! The seam between operators and devices: the one place that chooses what computes an operator.
//!
//! Every differentiable operator implements [`Operator`]: its formula in candle's device-neutral operations, and hand-written
//! kernels of a device, forward and backward. A device without kernels runs the formula, and candle's own graph over the
//! formula gives the gradients: slow and correct from the first day. A kernel for another device is a pair of methods
//! beside the CPU's and an arm of [`Backend::of`]; what calls an operator stays as it is.
//!
//! Inputs may be bf16 or f16: the seam computes in f32 and gives outputs and gradients back in the inputs' types. States,
//! normalisers and losses stay f32 ([`Operator::F32_FROM`]).

use super::tape::{Var, record};
use crate::Result;
use candle_core::{DType, Device, Tensor};
use std::sync::OnceLock;

/// A function of tensors with gradients.
pub(crate) trait Operator: 'static {
    /// The values that the forward pass of a kernel leaves for its backward pass, beside the inputs.
    type Kept: 'static;

    /// Outputs from this one on are states, normalisers or losses: they stay f32 whatever the inputs are.
    const F32_FROM: usize = usize::MAX;

    /// Operators that only move elements: their formula runs in the type of the first input, without a detour through f32.
    const MOVES_ONLY: bool = false;

    /// False: the CPU's backward pass gets no inputs, which are free as soon as nothing else needs them.
    const BACKWARD_READS_INPUTS: bool = true;

    /// Outputs by the operator's formula, in candle's differentiable operations on the device of the inputs. Inputs are
    /// f32 (indices apart) and contiguous.
    fn formula(&self, inputs: &[Tensor]) -> Result<Vec<Tensor>>;

    /// Gradients by the formula, `None` where they are not `wanted`. An operator whose graph as a whole would hold too much
    /// runs [`by_graph`] on its parts.
    fn formula_gradients(
        &self,
        inputs: &[Tensor],
        wanted: &[bool],
        gradients: &[Tensor],
    ) -> Result<Vec<Option<Tensor>>> {
        by_graph(|inputs| self.formula(inputs), inputs, wanted, gradients)
    }

    /// Outputs by the CPU's kernel. `keep`: a backward pass may follow; without it nothing need be kept.
    fn forward_cpu(&self, inputs: &[Tensor], keep: bool) -> Result<(Vec<Tensor>, Self::Kept)>;

    /// Gradients of the inputs by the CPU's kernel, `None` where they are not `wanted`, from those of the outputs.
    fn backward_cpu(
        &self,
        inputs: &[Tensor],
        kept: Self::Kept,
        wanted: &[bool],
        gradients: &[Tensor],
    ) -> Result<Vec<Option<Tensor>>>;
}

/// The code that computes an operator.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Backend {
    /// Hand-written kernels of the CPU.
    Cpu,
    /// The formula in candle's operations.
    Formula,
}

impl Backend {
    /// The backend of the device that holds `tensor`.
    pub fn of(tensor: &Tensor) -> Backend {
        if tensor.device().is_cpu() && cpu_kernels() { Backend::Cpu } else { Backend::Formula }
    }
}

/// False if the environment variable `SUBQUAD_CPU_KERNELS` is `0`: the CPU then computes by formulas, as a new device does,
/// so that the test suites prove the formulas without one.
fn cpu_kernels() -> bool {
    static ON: OnceLock<bool> = OnceLock::new();
    *ON.get_or_init(|| std::env::var_os("SUBQUAD_CPU_KERNELS").is_none_or(|value| value != "0"))
}

/// Runs a function that has no gradient, by the backend of `tensor`.
pub(crate) fn on_device<T>(
    tensor: &Tensor,
    cpu: impl FnOnce() -> Result<T>,
    formula: impl FnOnce() -> Result<T>,
) -> Result<T> {
    match Backend::of(tensor) {
        Backend::Cpu => cpu(),
        Backend::Formula => formula(),
    }
}

/// The outputs of an operator, recorded where an input is tracked. The first input decides device and output type.
pub(crate) fn apply<O: Operator>(operator: O, inputs: &[&Var]) -> Result<Vec<Var>> {
    let dtypes: Vec<DType> = inputs.iter().map(|x| x.value().dtype()).collect();
    let wanted: Vec<bool> = inputs.iter().map(|x| x.tracked()).collect();
    let backend = Backend::of(inputs[0].value());
    let moved = O::MOVES_ONLY && backend == Backend::Formula;
    let inside = |x: &Tensor| -> Result<Tensor> {
        let x = if moved { x.to_dtype(dtypes[0])? } else { as_f32(x)? };
        Ok(if backend == Backend::Formula { x.contiguous()? } else { x })
    };
    let mut values = inputs.iter().map(|x| inside(x.value())).collect::<Result<Vec<_>>>()?;
    let (outputs, kept) = match backend {
        Backend::Cpu => {
            operator.forward_cpu(&values, wanted.contains(&true)).map(|(outputs, kept)| (outputs, Some(kept)))?
        }
        Backend::Formula => (operator.formula(&values)?, None),
    };
    let zeros: Vec<Zeros> = outputs.iter().map(Zeros::like).collect();
    let of_type = |(i, x): (usize, Tensor)| Ok(if i < O::F32_FROM { x.to_dtype(dtypes[0])? } else { x });
    let outputs = outputs.into_iter().enumerate().map(of_type).collect::<Result<Vec<_>>>()?;
    if kept.is_some() && !O::BACKWARD_READS_INPUTS {
        values.clear();
    }
    record(inputs, outputs, move |gradients| {
        let given = gradients.into_iter().zip(&zeros).map(|(g, zeros)| match g {
            Some(g) => Ok(g.to_dtype(zeros.dtype)?.contiguous()?),
            None => zeros.tensor(),
        });
        let given = given.collect::<Result<Vec<_>>>()?;
        let found = match kept {
            Some(kept) => operator.backward_cpu(&values, kept, &wanted, &given)?,
            None => operator.formula_gradients(&values, &wanted, &given)?,
        };
        let of_input = |(g, dtype): (Option<Tensor>, &DType)| Ok(g.map(|g| g.to_dtype(*dtype)).transpose()?);
        found.into_iter().zip(&dtypes).map(of_input).collect()
    })
}

/// The gradient of an output that nothing depends on.
struct Zeros {
    dims: Vec<usize>,
    dtype: DType,
    device: Device,
}

impl Zeros {
    fn like(x: &Tensor) -> Self {
        Zeros { dims: x.dims().to_vec(), dtype: x.dtype(), device: x.device().clone() }
    }

    fn tensor(&self) -> Result<Tensor> {
        Ok(Tensor::zeros(self.dims.as_slice(), self.dtype, &self.device)?)
    }
}

/// [`apply`] for an operator with one output.
pub(crate) fn apply1<O: Operator>(operator: O, inputs: &[&Var]) -> Result<Var> {
    Ok(apply(operator, inputs)?.swap_remove(0))
}

/// Gradients of `formula` by candle's graph, which lives for this call only.
pub(crate) fn by_graph(
    formula: impl Fn(&[Tensor]) -> Result<Vec<Tensor>>,
    inputs: &[Tensor],
    wanted: &[bool],
    gradients: &[Tensor],
) -> Result<Vec<Option<Tensor>>> {
    let leaves = inputs
        .iter()
        .zip(wanted)
        .map(|(x, want)| Ok(if *want { Some(candle_core::Var::from_tensor(x)?) } else { None }));
    let leaves = leaves.collect::<Result<Vec<_>>>()?;
    let tracked: Vec<Tensor> =
        leaves.iter().zip(inputs).map(|(leaf, x)| leaf.as_ref().map_or(x, |leaf| leaf.as_tensor()).clone()).collect();
    let outputs = formula(&tracked)?;
    let weighted = outputs.iter().zip(gradients).map(|(output, gradient)| Ok((output * gradient)?.sum_all()?));
    let weighted = weighted.collect::<Result<Vec<_>>>()?;
    let found = Tensor::stack(&weighted, 0)?.sum_all()?.backward()?;
    let of_leaf = |leaf: &Option<candle_core::Var>| {
        let Some(leaf) = leaf else { return Ok(None) };
        // An input that no output depends on has no entry.
        Ok(Some(found.get(leaf).map_or_else(|| leaf.zeros_like(), |g| Ok(g.detach()))?))
    };
    leaves.iter().map(of_leaf).collect()
}

/// bf16 and f16 as f32; indices as they are.
pub(crate) fn as_f32(x: &Tensor) -> Result<Tensor> {
    Ok(if matches!(x.dtype(), DType::BF16 | DType::F16) { x.to_dtype(DType::F32)? } else { x.clone() })
}

/// The error of inputs that do not fit an operator or one another: found before the seam, so that every backend gives it.
pub(crate) fn misfit<T>(what: String) -> Result<T> {
    Err(candle_core::Error::Msg(what).into())
}
