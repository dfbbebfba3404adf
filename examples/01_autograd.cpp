// A tape in thirty lines, and the same gradient from the library's.
#include <proteus/autograd/elementwise.h>

#include <cmath>
#include <cstdio>
#include <utility>
#include <vector>

// Every value remembers what it was made of: (input, d value / d input).
struct Tape {
  struct Node {
    double value;
    std::vector<std::pair<std::size_t, double>> inputs;
  };
  std::vector<Node> nodes;

  std::size_t push(double value, std::vector<std::pair<std::size_t, double>> inputs = {}) {
    nodes.push_back({value, std::move(inputs)});
    return nodes.size() - 1;
  }
  double operator[](std::size_t i) const { return nodes[i].value; }
  std::size_t add(std::size_t a, std::size_t b) {
    return push((*this)[a] + (*this)[b], {{a, 1}, {b, 1}});
  }
  std::size_t mul(std::size_t a, std::size_t b) {
    return push((*this)[a] * (*this)[b], {{a, (*this)[b]}, {b, (*this)[a]}});
  }
  std::size_t tanh(std::size_t a) {
    const double y = std::tanh((*this)[a]);
    return push(y, {{a, 1 - y * y}});
  }
  // A node comes after its inputs: from the newest to the oldest every gradient is whole before it
  // is passed on.
  std::vector<double> gradients(std::size_t y) const {
    std::vector<double> d(nodes.size());
    d[y] = 1;
    for (std::size_t i = y + 1; i-- > 0;) {
      for (const auto& [input, slope] : nodes[i].inputs) d[input] += slope * d[i];
    }
    return d;
  }
};

double f(double a, double b) { return std::tanh(a * b + a) * b; }

int main() {
  const double a = 0.6;
  const double b = -1.7;

  Tape tape;
  const std::size_t ta = tape.push(a);
  const std::size_t tb = tape.push(b);
  const std::size_t y = tape.mul(tape.tanh(tape.add(tape.mul(ta, tb), ta)), tb);
  const auto d = tape.gradients(y);

  using namespace proteus;
  const Variable va(Tensor::scalar(a, DType::f64), true);
  const Variable vb(Tensor::scalar(b, DType::f64), true);
  const Variable vy = mul(tanh(add(mul(va, vb), va)), vb);
  vy.backward();

  const double h = 1e-6;
  std::printf("                 f(a, b)      df/da      df/db\n");
  std::printf("this tape      %9.6f  %9.6f  %9.6f\n", tape[y], d[ta], d[tb]);
  std::printf("the library    %9.6f  %9.6f  %9.6f\n", vy.value().item(), va.grad().item(),
              vb.grad().item());
  std::printf("differences    %9.6f  %9.6f  %9.6f\n", f(a, b),
              (f(a + h, b) - f(a - h, b)) / (2 * h), (f(a, b + h) - f(a, b - h)) / (2 * h));
}
