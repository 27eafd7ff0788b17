//! Volumes: the gate in front of instances, and pouring of trees to holders.
