//! Reading an adapter in PEFT's format: its settings by [`super::peft`], its tensors here.

use std::collections::BTreeMap;
use std::path::Path;

use candle_core::{DType, Tensor};

use super::adapter::PREFIX;
use super::names::ADAPTER_WEIGHTS;
use super::peft::{FOLDER, Settings};
use crate::arch::{Spec, Target};
use crate::checkpoint::{load_tensors, place_in, shown};
use crate::model::Adapter;
use crate::{Error, Result};

/// The adapter in `folder`, as this model takes it: its shape, and its tensors under this crate's names.
pub fn read_adapter(folder: &Path, spec: &Spec) -> Result<(Adapter, BTreeMap<String, Tensor>)> {
    let Settings { rank, alpha, .. } = Settings::open(folder)?;
    let weights = folder.join(ADAPTER_WEIGHTS);
    let (mut found, _) = load_tensors(&weights)?;
    let (mut tensors, mut on) = (BTreeMap::new(), vec![]);
    let places = Target::ALL.into_iter().flat_map(|target| (0..spec.layers).map(move |layer| (target, layer)));
    for (target, layer) in places {
        let (Some([out, input]), Some(names)) = (spec.linear(layer, target), Adapter::names(spec, layer, target))
        else {
            continue;
        };
        for (name, shape) in names.into_iter().zip([[rank, input], [out, rank]]) {
            let Some(tensor) = found.remove(&format!("{PREFIX}{name}")) else { continue };
            tensors.insert(name.clone(), checked(&weights, &name, &tensor, shape)?);
            if !on.contains(&target) {
                on.push(target);
            }
        }
    }
    if let Some(name) = found.keys().next() {
        let what = format!("`{}` is the name of no projection of this model that has a tensor of its own", shown(name));
        let hint = "the adapter belongs to another model, or to projections that share one";
        return Err(Error::file(&weights, what, hint));
    }
    if on.is_empty() {
        return Err(Error::file(&weights, "there is no adapter of any projection in it", FOLDER));
    }
    let adapter = Adapter { rank, alpha, targets: on };
    let needed = (0..spec.layers).flat_map(|layer| adapter.tensors(spec, layer));
    if let Some((name, ..)) = needed.into_iter().find(|(name, ..)| !tensors.contains_key(name)) {
        let what = format!("`{PREFIX}{name}` is missing, and other layers have theirs");
        return Err(Error::file(&weights, what, "give all layers or none an adapter"));
    }
    Ok((adapter, tensors))
}

/// A tensor in f32, of the shape that the model needs and with finite numbers.
fn checked(path: &Path, name: &str, tensor: &Tensor, shape: [usize; 2]) -> Result<Tensor> {
    if tensor.dims() != shape {
        let what = format!("`{PREFIX}{name}` has the shape {:?}, and this model needs {shape:?}", tensor.dims());
        return Err(Error::file(path, what, "the adapter belongs to another model"));
    }
    let tensor = tensor.to_dtype(DType::F32)?;
    let values = tensor.flatten_all()?.to_vec1::<f32>()?;
    if let Some(at) = values.iter().position(|x| !x.is_finite()) {
        let place = place_in(&shape, at);
        let what = format!("`{PREFIX}{name}` holds {} at {place:?}: not all of its numbers are finite", values[at]);
        let hint = "its training had diverged, or the file is damaged: give an earlier checkpoint of the adapter";
        return Err(Error::file(path, what, hint));
    }
    Ok(tensor)
}
