//! How far each layer of a student is from its teacher's.

use super::report::LayerError;
use crate::Result;
use crate::model::{Flow, Model, Student, View};
use crate::ops::statistics::{minus, square_sum};

/// Relative squared error of what the attention of every replaced layer adds to the teacher's own input of that layer:
/// 1 for a silent mixer. After the output projection, since what lies before it may turn while it is trained with it.
pub(super) fn errors(
    teacher: &Model,
    student: &Student,
    main: &View,
    ids: &[u32],
    batch: usize,
) -> Result<Vec<LayerError>> {
    let replaced: Vec<usize> = (0..teacher.spec.layers).filter(|&layer| student.replaced(layer)).collect();
    let mut errors = vec![];
    let teacher = View::teacher(teacher);
    teacher.run(ids, batch, &mut |hook| {
        if student.replaced(hook.layer) {
            let target = teacher.attention(hook.layer, hook.input)?;
            let missing = minus(&main.attention(hook.layer, hook.input)?, &target)?;
            errors.push(LayerError { layer: hook.layer, error: square_sum(&missing)? / square_sum(&target)? });
        }
        Ok(if Some(&hook.layer) == replaced.last() { Flow::Stop } else { Flow::Continue })
    })?;
    Ok(errors)
}
