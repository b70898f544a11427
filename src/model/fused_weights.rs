//! Weights out of the tensors of files, and back: the same numbers in another order.

use crate::Result;
use crate::arch::{Arrangement, Part, Spec, StoredTensor};
use candle_core::Tensor;

/// The weights that `tensor` holds.
pub(super) fn cut(spec: &Spec, stored: &StoredTensor, tensor: Tensor) -> Result<Vec<(Part, Tensor)>> {
    if let ([(part, _)], Arrangement::Rows) = (&stored.parts[..], stored.arrangement) {
        return Ok(vec![(*part, tensor)]);
    }
    let rows = upright(stored, &tensor)?;
    let groups = groups(spec, stored);
    let inner: usize = rows.dims()[1..].iter().product();
    let grouped = rows.reshape((groups, rows.dim(0)? / groups, inner))?;
    let mut from = 0;
    let mut parts = vec![];
    for (part, shape) in &stored.parts {
        let of_group = shape[0] / groups;
        let piece = grouped.narrow(1, from, of_group)?.contiguous()?.reshape(shape.as_slice())?;
        parts.push((*part, piece));
        from += of_group;
    }
    Ok(parts)
}

/// The tensor that holds `parts`, in the order of its weights.
pub(crate) fn join(spec: &Spec, stored: &StoredTensor, parts: &[&Tensor]) -> Result<Tensor> {
    if let ([one], Arrangement::Rows) = (parts, stored.arrangement) {
        return Ok((*one).clone());
    }
    let groups = groups(spec, stored);
    let grouped = |part: &&Tensor| -> Result<Tensor> {
        let inner: usize = part.dims()[1..].iter().product();
        Ok(part.reshape((groups, part.dim(0)? / groups, inner))?)
    };
    let fused_weights = parts.iter().map(grouped).collect::<Result<Vec<_>>>()?;
    let all = Tensor::cat(&fused_weights, 1)?;
    let rows: usize = stored.parts.iter().map(|(_, shape)| shape[0]).sum();
    match stored.parts[0].1.get(1) {
        None => Ok(all.reshape(rows)?),
        Some(&columns) => Ok(upright(stored, &all.reshape((rows, columns))?)?),
    }
}

/// [in, out] as [out, in], and the reverse.
fn upright(stored: &StoredTensor, tensor: &Tensor) -> Result<Tensor> {
    match (stored.arrangement, tensor.rank()) {
        (Arrangement::Transposed, 2) => Ok(tensor.t()?.contiguous()?),
        _ => Ok(tensor.clone()),
    }
}

/// Runs of rows in which each weight has its share.
fn groups(spec: &Spec, stored: &StoredTensor) -> usize {
    if stored.arrangement == Arrangement::Grouped { spec.kv_heads } else { 1 }
}
