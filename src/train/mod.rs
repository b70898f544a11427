//! Training: the optimiser, schedules, the layer-by-layer backward pass, and the loop that every training stage shares.

mod adamw;
mod backward;
mod schedule;
mod settings;
mod trainer;

pub use adamw::{AdamW, Failure, Group};
pub use backward::{Gradients, end_to_end, loss_only, non_finite_layer};
pub use schedule::Scheduler;
pub use settings::{Batch, Optimizer, Schedule, ScheduleKind};
pub use trainer::{Metric, Objective, Saved, Store, Trainer, TrainingData};
