// Ctrl-C: the first one asks a run to finish its step and stop, the second one kills.
#pragma once

namespace proteus {

/// From here on SIGINT and SIGTERM set a flag; the second of a kind acts as if nothing was
/// installed.
void install_interrupt_handler();
/// Whether one came.
bool interrupted();
/// Forgets it (tests).
void clear_interrupt();

}  // namespace proteus
