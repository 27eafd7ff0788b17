//! One server converging on its assignment: the agent and the daemons it keeps.
