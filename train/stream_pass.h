// The first pass over a streamed text: its rows come from a source, are staged, scored and offered
// to the shortlist chunk by chunk. What has to wait (a disk, a pipe) waits on threads of its own.
#pragma once

#include <cstdint>
#include <functional>
#include <vector>

#include "aspa/shortlist.h"
#include "aspa/token_scorer.h"
#include "train/row_source.h"
#include "train/staging.h"

namespace proteus {

/// Rows that are read, scored and written at once, of any chunk: a function of the width alone, so
/// that a token's scores are too.
std::int64_t stream_block(std::int64_t width);

/// Seconds of the pass, and of it those that went by until rows were there.
struct StreamTimes {
  double total = 0;
  double source = 0;
};

/// Until the source ends. `staging` has blocks of stream_block rows of the source. `on_chunk` is
/// called after every chunk; after an interrupt the pass stops within a block. Throws what source,
/// staging, scorer and shortlist throw.
StreamTimes stream_chunks(const RowSource& source, Staging& staging, const TokenScorer& scorer,
                          std::int64_t chunk, Shortlist& shortlist,
                          const std::function<void(const ChunkReport&)>& on_chunk);

/// The rows of the spans, one after the other, into f32 [tokens of the spans, C].
void read_spans(Staging& staging, const RowSource& source, const std::vector<Span>& spans,
                const Tensor& out);

}  // namespace proteus
