//! Reverse-mode differentiation over detached tensors.
//!
//! candle's own graph gives gradients to frozen weights, keeps the forward pass alive, and frees nothing while it
//! runs backward. This tape records an operation only when an input is tracked, hands every operation the list of
//! inputs whose gradient is wanted, and drops each record as soon as it has been used.
//!
//! A [`Var`] that is not tracked is a plain tensor: the same code without a tape is the inference path.

use candle_core::Tensor;
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;

use crate::{Error, Result};

/// Gradients of the outputs (None: not used downstream) to gradients of the inputs (None: not wanted).
type Backward = Box<dyn FnOnce(Vec<Option<Tensor>>) -> Result<Vec<Option<Tensor>>>>;

struct Record {
    inputs: Vec<Option<usize>>,
    outputs: std::ops::Range<usize>,
    backward: Backward,
}

#[derive(Default)]
struct Records {
    list: Vec<Record>,
    values: usize,
}

/// A list of recorded operations, in the order in which they ran.
#[derive(Clone, Default)]
pub struct Tape(Rc<RefCell<Records>>);

/// A tensor and, when it depends on a leaf of a tape, its place there.
#[derive(Clone)]
pub struct Var {
    value: Tensor,
    place: Option<(Tape, usize)>,
}

impl Var {
    /// A value without gradient.
    pub fn constant(value: Tensor) -> Self {
        Var { value, place: None }
    }

    pub fn value(&self) -> &Tensor {
        &self.value
    }

    /// Whether a gradient of this value is wanted.
    pub fn tracked(&self) -> bool {
        self.place.is_some()
    }

    /// The single element of a scalar.
    pub fn scalar(&self) -> Result<f32> {
        Ok(self.value.to_scalar::<f32>()?)
    }
}

impl From<Tensor> for Var {
    fn from(value: Tensor) -> Self {
        Var::constant(value)
    }
}

impl Tape {
    pub fn new() -> Self {
        Self::default()
    }

    /// A value whose gradient is wanted.
    pub fn leaf(&self, value: Tensor) -> Var {
        let place = self.new_values(1).start;
        Var { value, place: Some((self.clone(), place)) }
    }

    fn new_values(&self, n: usize) -> std::ops::Range<usize> {
        let mut records = self.0.borrow_mut();
        let start = records.values;
        records.values += n;
        start..start + n
    }

    /// Runs all records backward from `seeds` (values and the gradients they start with) and empties the tape.
    pub fn backward(&self, seeds: Vec<(&Var, Tensor)>) -> Result<Gradients> {
        let mut grads: BTreeMap<usize, Tensor> = BTreeMap::new();
        for (var, grad) in seeds {
            if let Some((_, id)) = &var.place {
                add_into(&mut grads, *id, grad)?;
            }
        }
        loop {
            let Some(record) = self.0.borrow_mut().list.pop() else { break };
            let outputs: Vec<_> = record.outputs.clone().map(|id| grads.remove(&id)).collect();
            if outputs.iter().all(Option::is_none) {
                continue;
            }
            let inputs = (record.backward)(outputs)?;
            if inputs.len() != record.inputs.len() {
                return Err(Error::Internal("a backward pass returned a wrong number of gradients".into()));
            }
            for (id, grad) in record.inputs.into_iter().zip(inputs) {
                if let (Some(id), Some(grad)) = (id, grad) {
                    add_into(&mut grads, id, grad)?;
                }
            }
        }
        Ok(Gradients(grads))
    }
}

fn add_into(grads: &mut BTreeMap<usize, Tensor>, id: usize, grad: Tensor) -> Result<()> {
    let sum = match grads.remove(&id) {
        Some(old) => (old + grad)?,
        None => grad,
    };
    grads.insert(id, sum);
    Ok(())
}

/// Gradients of the leaves of a tape.
pub struct Gradients(BTreeMap<usize, Tensor>);

impl Gradients {
    /// Takes the gradient of a leaf; `None` when nothing depended on it.
    pub fn take(&mut self, leaf: &Var) -> Option<Tensor> {
        leaf.place.as_ref().and_then(|(_, id)| self.0.remove(id))
    }
}

/// Records an operation with several outputs. `backward` runs only if an input is tracked and an output is used; it
/// may return gradients for untracked inputs, which are dropped, but had better ask [`Var::tracked`] and not make them.
pub fn record(
    inputs: &[&Var],
    outputs: Vec<Tensor>,
    backward: impl FnOnce(Vec<Option<Tensor>>) -> Result<Vec<Option<Tensor>>> + 'static,
) -> Result<Vec<Var>> {
    let Some((tape, _)) = inputs.iter().find_map(|v| v.place.as_ref()) else {
        return Ok(outputs.into_iter().map(Var::constant).collect());
    };
    let places = inputs.iter().map(|v| v.place.as_ref().map(|p| p.1)).collect();
    let ids = tape.new_values(outputs.len());
    let record = Record { inputs: places, outputs: ids.clone(), backward: Box::new(backward) };
    tape.0.borrow_mut().list.push(record);
    Ok(outputs.into_iter().zip(ids).map(|(value, id)| Var { value, place: Some((tape.clone(), id)) }).collect())
}
