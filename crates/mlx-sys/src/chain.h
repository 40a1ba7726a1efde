// Launches of our own kernels one after the other, and the executable graphs of CUDA's that run
// them. See joined.h for how a graph of MLX's becomes one.
#pragma once

#include <array>
#include <memory>
#include <tuple>
#include <utility>
#include <vector>

#include "mlx-sys/src/driver.h"
#include "mlx-sys/src/program.h"
#include "mlx-sys/src/shim.h"

namespace offshoot {

using Node = std::shared_ptr<mx::Primitive>;

// What all launches of a node share.
struct Form {
  std::weak_ptr<mx::Primitive> node;
  Program* program;
  std::array<unsigned, 3> grid, group;
  int shared_bytes;
  // Whether an input's shape, strides and number of axes are arguments.
  std::vector<std::tuple<bool, bool, bool>> states;
  // Inputs from here on may be read before the launches before have ended; −1: none.
  int n_late;

  bool reads_early(size_t input) const { return n_late >= 0 && input >= size_t(n_late); }
};

// Makes a launch known, when MLX has made its node: from then on it can be part of a chain. n_late
// as DeviceKernel has it.
void note_launch(const Node& node, int n_late);

// Of the launch that gives an array which is not computed yet; null if it is none of ours.
const Form* form_of(const array& a);

// Where an argument that is an address comes from.
struct Address {
  enum class Of { between, input, output } of;
  // Bytes from the beginning of what is in between, or which.
  size_t at;

  bool operator==(const Address&) const = default;
};

// Launches one after another, as a graph states them: every address is open.
struct Chain {
  struct Launch {
    Node node;
    const Form* form;
    // Its words and arguments begin here.
    size_t word, argument;

    bool operator==(const Launch&) const = default;
  };
  std::vector<Launch> launches;
  // Values of arguments, zeros for addresses.
  std::vector<uint64_t> words;
  // The word at which each argument begins.
  std::vector<size_t> arguments;
  // Words that are addresses.
  std::vector<std::pair<size_t, Address>> open;
  size_t between_bytes = 0;
  size_t n_inputs = 0;

  bool operator==(const Chain&) const = default;

  size_t end_word(size_t i) const {
    return i + 1 < launches.size() ? launches[i + 1].word : words.size();
  }

  // The words with all addresses. The last input is what is in between.
  std::vector<uint64_t> closed(const std::vector<array>& inputs,
                               const std::vector<array>& outputs) const;

  // What the driver is told of launch `i` with these words; `pointers` must outlive it.
  KernelNode told(size_t i, std::vector<uint64_t>& list, std::vector<void*>& pointers) const;
};

using SharedChain = std::shared_ptr<const Chain>;

// The node of a chain over its inputs, with outputs of these sizes.
std::vector<array> made_of(mx::Stream stream, const SharedChain& chain, std::vector<array> inputs,
                           std::vector<mx::Shape> shapes, const std::vector<mx::Dtype>& dtypes);

}  // namespace offshoot
