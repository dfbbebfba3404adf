// The rungs' functions, one pair per file. Private to cuda/attention*.cu.
#pragma once

#include "tensor/ops/attention.h"

namespace proteus::cuda {

bool plain_fits(const AttentionProblem& p);
void attention_fwd_plain(const AttentionFwd& a);
void attention_bwd_plain(const AttentionBwd& a);

bool tiled_fwd_fits(const AttentionFwd& a);
void attention_fwd_tiled(const AttentionFwd& a);
bool tiled_bwd_fits(const AttentionBwd& a);
void attention_bwd_tiled(const AttentionBwd& a);

bool mma_fwd_fits(const AttentionFwd& a);
void attention_fwd_mma(const AttentionFwd& a);
bool hopper_fwd_fits(const AttentionFwd& a);
void attention_fwd_hopper(const AttentionFwd& a);
bool mma_bwd_fits(const AttentionBwd& a);
void attention_bwd_mma(const AttentionBwd& a);
bool hopper_bwd_fits(const AttentionBwd& a);
void attention_bwd_hopper(const AttentionBwd& a);

}  // namespace proteus::cuda
