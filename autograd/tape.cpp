#include "autograd/tape.h"

#include <algorithm>
#include <atomic>
#include <queue>
#include <string>
#include <utility>

#include "tensor/error.h"

namespace proteus {

namespace {
thread_local bool t_grad_enabled = true;
// One order for all threads: a history may cross them.
std::uint64_t next_sequence() {
  static std::atomic<std::uint64_t> sequence{0};
  return sequence.fetch_add(1, std::memory_order_relaxed) + 1;
}

struct Meta {
  Shape shape;
  DType dtype = DType::f32;
  Device device;
};

Meta meta_of(const Tensor& t) { return {t.shape(), t.dtype(), t.device()}; }

std::string describe(const Meta& m) {
  return std::string(name_of(m.dtype)) + " " + to_string(m.shape);
}

void check_gradient(const std::string& where, const Tensor& g, const Meta& expected) {
  if (g.shape() == expected.shape && g.dtype() == expected.dtype && g.device() == expected.device) {
    return;
  }
  throw AutogradError(where + ": expected " + describe(expected) + ", got " + proteus::describe(g));
}

// Whether a sum may be changed in place: nobody else can see its memory.
bool owned(const Tensor& sum) { return sum.storage().use_count() == 1 && sum.is_contiguous(); }

void accumulate_gradient(Tensor& sum, Tensor g) {
  if (!sum.defined()) {
    sum = std::move(g);
    return;
  }
  if (!owned(sum)) sum = sum.clone();
  sum.add_(g);
}

}  // namespace

/// One recorded function call.
class Node {
 public:
  /// An input's gradient goes to a producer's output, to a leaf, or nowhere.
  struct Edge {
    std::shared_ptr<Node> producer;
    int output = 0;
    std::shared_ptr<Leaf> leaf;
    Meta meta;
    bool needed() const { return producer || leaf; }
  };
  Node() = default;
  Node(const Node&) = delete;
  Node& operator=(const Node&) = delete;
  // A chain of a million nodes must not be freed by a million nested destructors.
  ~Node() {
    std::vector<std::shared_ptr<Node>> todo;
    release(todo);
    while (!todo.empty()) {
      const std::shared_ptr<Node> node = std::move(todo.back());
      todo.pop_back();
      if (node.use_count() == 1) node->release(todo);
    }
  }

  void release(std::vector<std::shared_ptr<Node>>& producers) {
    for (Edge& edge : edges) {
      if (edge.producer) producers.push_back(std::move(edge.producer));
    }
    edges.clear();
  }

  const char* name = "";
  std::uint64_t sequence = 0;
  std::vector<Edge> edges;
  std::vector<Meta> outputs;
  std::vector<Saved> saved;
  BackwardFn backward;
  std::vector<Tensor> dys;  // gradients of the outputs, summed while backward runs
  bool queued = false;
  bool done = false;
};

/// The only friend of Variable: makes nodes and walks them.
class Tape {
 public:
  static std::shared_ptr<const Recipe> recipe_of(const Variable& x) { return x.state_->recipe; }
  static Variable with_recipe(const Variable& x, std::shared_ptr<const Recipe> recipe) {
    Variable out;
    out.state_ = std::make_shared<Variable::State>(*x.state_);
    out.state_->recipe = std::move(recipe);
    return out;
  }

  static Node::Edge edge_of(const Variable& v) {
    Node::Edge edge;
    if (!v.defined()) return edge;
    edge.producer = v.state_->producer;
    edge.output = v.state_->output;
    edge.leaf = v.state_->leaf;
    edge.meta = meta_of(v.value());
    return edge;
  }

  static std::vector<Variable> record(const char* name, const std::vector<Variable>& inputs,
                                      std::vector<Tensor> outputs, std::vector<Saved> saved,
                                      BackwardFn backward) {
    std::shared_ptr<Node> node;
    if (will_record(inputs)) {
      node = std::make_shared<Node>();
      node->name = name;
      node->sequence = next_sequence();
      node->backward = std::move(backward);
      for (const Variable& input : inputs) node->edges.push_back(edge_of(input));
      for (const Tensor& t : outputs) node->outputs.push_back(meta_of(t));
      node->saved = std::move(saved);
      node->dys.resize(outputs.size());
    }
    std::vector<Variable> variables;
    for (std::size_t i = 0; i < outputs.size(); ++i) {
      Variable v(std::move(outputs[i]));
      v.state_->producer = node;
      v.state_->output = static_cast<int>(i);
      variables.push_back(std::move(v));
    }
    return variables;
  }

  static void backward(const std::vector<Variable>& roots, const std::vector<Tensor>& cotangents) {
    Tape tape;
    for (std::size_t i = 0; i < roots.size(); ++i) {
      const Node::Edge edge = edge_of(roots[i]);
      if (!edge.needed()) {
        throw AutogradError("backward: the variable has no history and requires no gradient");
      }
      check_gradient("backward(cotangent): cotangent", cotangents[i], edge.meta);
      tape.send(edge, cotangents[i]);
    }
    const NoGradGuard no_grad;
    while (!tape.queue_.empty()) {
      const std::shared_ptr<Node> node = tape.queue_.top();
      tape.queue_.pop();
      tape.run(*node);
    }
  }

 private:
  struct Older {
    bool operator()(const std::shared_ptr<Node>& a, const std::shared_ptr<Node>& b) const {
      return a->sequence < b->sequence;
    }
  };

  void send(const Node::Edge& edge, Tensor g) {
    if (edge.leaf) {
      // The leaf keeps its gradient: it must own it, alone and contiguous.
      if (!edge.leaf->grad.defined() && (g.storage().use_count() > 1 || !g.is_contiguous())) {
        g = g.clone();
      }
      accumulate_gradient(edge.leaf->grad, std::move(g));
      return;
    }
    Node& node = *edge.producer;
    if (node.done) {
      throw AutogradError(std::string(node.name) +
                          ": backward was already run through this history, which freed it; run "
                          "the forward pass again");
    }
    accumulate_gradient(node.dys[static_cast<std::size_t>(edge.output)], std::move(g));
    if (!node.queued) {
      node.queued = true;
      queue_.push(edge.producer);
    }
  }

  void run(Node& node) {
    for (std::size_t i = 0; i < node.saved.size(); ++i) {
      if (const Tensor* changed = node.saved[i].changed()) {
        throw AutogradError(std::string(node.name) + ": saved tensor " + std::to_string(i) + " (" +
                            proteus::describe(*changed) +
                            ") was changed in place after the forward pass; change a clone");
      }
    }
    Gradients grads = node.backward(Backward(node, node.dys));
    if (grads.size() != node.edges.size()) {
      throw AutogradError(std::string(node.name) + ": backward returned " +
                          std::to_string(grads.size()) + " gradients for " +
                          std::to_string(node.edges.size()) + " inputs");
    }
    node.done = true;
    node.dys.clear();
    node.saved.clear();
    node.backward = nullptr;
    for (std::size_t i = 0; i < grads.size(); ++i) {
      if (!grads[i].defined() || !node.edges[i].needed()) continue;
      check_gradient(std::string(node.name) + ": gradient of input " + std::to_string(i), grads[i],
                     node.edges[i].meta);
      send(node.edges[i], std::move(grads[i]));
    }
  }

  std::priority_queue<std::shared_ptr<Node>, std::vector<std::shared_ptr<Node>>, Older> queue_;
};

Saved::Saved(const Variable& x) : recipe_(Tape::recipe_of(x)) {
  if (!recipe_) *this = Saved(x.value());
}

const Tensor& Saved::get() {
  if (recipe_ && !tensor_.defined()) tensor_ = recipe_->make(recipe_->from);
  return tensor_;
}

const Tensor* Saved::changed() const {
  if (!recipe_) return version_of(tensor_) == version_ ? nullptr : &tensor_;
  for (std::size_t i = 0; i < recipe_->from.size(); ++i) {
    if (recipe_->from[i].version() != recipe_->versions[i]) return &recipe_->from[i];
  }
  return nullptr;
}

Variable made_again(const Variable& x, std::vector<Tensor> from,
                    std::function<Tensor(const std::vector<Tensor>&)> make) {
  Recipe recipe{std::move(from), {}, std::move(make)};
  for (const Tensor& t : recipe.from) recipe.versions.push_back(t.version());
  return Tape::with_recipe(x, std::make_shared<const Recipe>(std::move(recipe)));
}

const Tensor& Backward::dy(int output) const {
  Tensor& g = dys_[static_cast<std::size_t>(output)];
  if (!g.defined()) {
    const Meta& m = node_.outputs[static_cast<std::size_t>(output)];
    g = Tensor::zeros(m.shape, m.dtype, m.device);
  }
  return g;
}

const Tensor& Backward::saved(int i) const {
  return node_.saved[static_cast<std::size_t>(i)].get();
}

void Backward::release(int i) const { node_.saved[static_cast<std::size_t>(i)].release(); }

bool Backward::needs(int input) const {
  return node_.edges[static_cast<std::size_t>(input)].needed();
}

const Tensor* Backward::sum(int input) const {
  const Node::Edge& edge = node_.edges[static_cast<std::size_t>(input)];
  const Tensor* sum = nullptr;
  if (edge.leaf) {
    sum = &edge.leaf->grad;
  } else if (edge.producer && !edge.producer->done) {
    sum = &edge.producer->dys[static_cast<std::size_t>(edge.output)];
  }
  return sum && sum->defined() && owned(*sum) ? sum : nullptr;
}

std::vector<Variable> record(const char* name, const std::vector<Variable>& inputs,
                             std::vector<Tensor> outputs, std::vector<Saved> saved,
                             BackwardFn backward) {
  return Tape::record(name, inputs, std::move(outputs), std::move(saved), std::move(backward));
}

Variable record(const char* name, const std::vector<Variable>& inputs, Tensor output,
                std::vector<Saved> saved, BackwardFn backward) {
  std::vector<Tensor> outputs;
  outputs.push_back(std::move(output));
  return Tape::record(name, inputs, std::move(outputs), std::move(saved), std::move(backward))[0];
}

bool will_record(const std::vector<Variable>& inputs) {
  return t_grad_enabled && std::any_of(inputs.begin(), inputs.end(), [](const Variable& v) {
           return v.defined() && v.requires_grad();
         });
}

bool grad_enabled() { return t_grad_enabled; }

GradMode::GradMode(bool enabled) : before_(t_grad_enabled) { t_grad_enabled = enabled; }
GradMode::~GradMode() { t_grad_enabled = before_; }

void run_backward(const std::vector<Variable>& roots, const std::vector<Tensor>& cotangents) {
  if (roots.size() != cotangents.size()) {
    throw AutogradError("run_backward(roots, cotangents): expected " +
                        std::to_string(roots.size()) + " cotangents (= roots), got " +
                        std::to_string(cotangents.size()));
  }
  Tape::backward(roots, cotangents);
}

}  // namespace proteus
