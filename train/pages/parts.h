// The parts of a page, each of one run. A part whose data is not there writes nothing and returns
// false. `id` begins the ids of its figures.
#pragma once

#include <string>
#include <vector>

#include "train/pages/prototype_map.h"
#include "train/pages/run_data.h"
#include "train/pages/writer.h"

namespace proteus {

/// Loss, speed and memory of the arms.
bool write_training(PageWriter& page, const Run& run, const std::string& id);
/// What the arms wrote, side by side.
bool write_samples(PageWriter& page, const Run& run);
/// Loads of the heads, balance, and what was done to the gates.
bool write_routing(PageWriter& page, const Run& run, const std::string& id);
/// Prototypes and tokens in two dimensions.
bool write_prototypes(PageWriter& page, const std::vector<PrototypeMap>& maps,
                      const std::string& id);
/// Time and memory of a layer against the length.
bool write_sweep(PageWriter& page, const Run& run, const std::string& id);
/// What a stream kept, and where.
bool write_stream(PageWriter& page, const Run& run, const std::string& id);
/// Needles that were found.
bool write_needles(PageWriter& page, const Run& run);
/// The calls and the machine.
bool write_calls(PageWriter& page, const Run& run);

/// The color of an arm: the same for all its seeds.
int arm_color(const Run& run, const std::string& name);

}  // namespace proteus
