// Many launches of our own CUDA kernels as one node of MLX's graph. MLX spends several microseconds
// on each node: it walks the graph, takes memory for each result, hashes the kernel's text, tells
// CUDA of every launch anew. A step that decodes is hundreds of launches of as many microseconds.
// Joined, they are one executable graph of CUDA's, kept from step to step, in which only what has
// changed is changed, with one piece of memory for all that is in between.
#pragma once

#include <memory>

#include "mlx-sys/src/shim.h"

namespace offshoot {

// The same arrays, with the launches that lead to them joined where many follow each other. What
// has been computed already stays as it is, and so does all that is not a launch of a kernel of
// ours or a new shape of one's result. Launches run one after the other, in the order of their
// dependencies.
std::unique_ptr<Arrays> joined(const Arrays& outputs);

// The launches that lead from some arrays to others, to be run again from other arrays of the same
// shapes without their graph.
struct Recording;
// Null where something else than launches lies between, or few of them.
std::shared_ptr<Recording> record(const Arrays& outputs, const Arrays& sources);
// Whether two do the same, with the same arrays beside the sources.
bool is_same(const std::shared_ptr<Recording>& a, const std::shared_ptr<Recording>& b);
// What was recorded over other sources, in their order.
std::unique_ptr<Arrays> replay(const std::shared_ptr<Recording>& recording, const Arrays& sources);

}  // namespace offshoot
