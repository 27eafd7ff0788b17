//! Images and running instances: mmdebstrap, overlay, user namespaces, libcontainer, cgroups.
