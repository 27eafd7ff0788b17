//! What the API shows: one consistent look at everything. Made by `reconcile` in each round.

use std::sync::Arc;

use kopek_core::observed::Observed;

use crate::state::CellState;

#[derive(Debug, Clone, Default)]
pub struct View {
    pub state: Arc<CellState>,
    pub observed: Observed,
    pub blocked: Vec<String>,
    pub converged: bool,
}
