// A trained dense model as an ASPA one: the weights of its heads become those of shared and of
// routed heads, the router and everything else that is new begins as it does in a fresh model. At
// alpha 0 the two are the same function (docs/aspa.md, "The slider"), so that training goes on from
// there.
#pragma once

#include <memory>
#include <string>

#include "train/models.h"

namespace proteus {

/// Options of the ASPA model made from a dense one: those of the dense checkpoint, with what `call`
/// gives about ASPA and its context, which learned positions can only shorten. Routed heads are the
/// dense heads that are not shared, and are rotated whole, as dense heads are, or not at all where
/// positions are learned. Throws ConfigError for an arm that is not dense or dense_shift, and for
/// numbers of heads that do not add up.
Options converted_options(const SavedModel& dense, const Options& call);

/// The ASPA model of `options` with the weights of `dense`; its heads' order is kept, shared ones
/// first. A dense arm without a key shift gets one of μ = 0. Throws FileError where the weights do
/// not fit.
std::unique_ptr<Transformer> converted(const Transformer& dense, const Options& options,
                                       std::uint64_t seed);

}  // namespace proteus
