// The autograd of bns_loss, on every device. In Python, handling a network's hundreds of tensors
// would cost more than the operator itself.

#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include <tuple>
#include <vector>

namespace gdfq {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::Variable;
using torch::autograd::variable_list;
using Gradients = std::tuple<std::vector<at::Tensor>, std::vector<at::Tensor>>;

at::Tensor call_forward(at::TensorList means, at::TensorList vars, at::TensorList running_means,
                        at::TensorList running_vars) {
  static const auto op = c10::Dispatcher::singleton()
                             .findSchemaOrThrow("gdfq::bns_loss", "")
                             .typed<decltype(call_forward)>();
  return op.call(means, vars, running_means, running_vars);
}

Gradients call_backward(const at::Tensor& grad, at::TensorList means, at::TensorList vars,
                        at::TensorList running_means, at::TensorList running_vars) {
  static const auto op = c10::Dispatcher::singleton()
                             .findSchemaOrThrow("gdfq::bns_loss_backward", "")
                             .typed<decltype(call_backward)>();
  return op.call(grad, means, vars, running_means, running_vars);
}

struct Loss : torch::autograd::Function<Loss> {
  static Variable forward(AutogradContext* context, at::TensorList means, at::TensorList vars,
                          at::TensorList running_means, at::TensorList running_vars) {
    const at::AutoDispatchBelowADInplaceOrView below;
    variable_list inputs;
    inputs.reserve(4 * means.size());
    for (const at::TensorList list : {means, vars, running_means, running_vars})
      inputs.insert(inputs.end(), list.begin(), list.end());
    context->save_for_backward(std::move(inputs));
    return call_forward(means, vars, running_means, running_vars);
  }

  static variable_list backward(AutogradContext* context, variable_list grads) {
    const variable_list inputs = context->get_saved_variables();
    const at::TensorList all(inputs);
    const size_t layers = inputs.size() / 4;
    auto [result, grad_vars] =
        call_backward(grads[0], all.slice(0, layers), all.slice(layers, layers),
                      all.slice(2 * layers, layers), all.slice(3 * layers, layers));
    result.insert(result.end(), grad_vars.begin(), grad_vars.end());
    result.resize(4 * layers);  // stored statistics get none
    return result;
  }
};

struct Derivative : torch::autograd::Function<Derivative> {
  static variable_list forward(AutogradContext*, const at::Tensor& grad, at::TensorList means,
                               at::TensorList vars, at::TensorList running_means,
                               at::TensorList running_vars) {
    const at::AutoDispatchBelowADInplaceOrView below;
    auto [result, grad_vars] = call_backward(grad, means, vars, running_means, running_vars);
    result.insert(result.end(), grad_vars.begin(), grad_vars.end());
    return result;
  }

  static variable_list backward(AutogradContext*, variable_list) {
    TORCH_CHECK(false, "gdfq: operators are differentiable once; second derivatives are not.");
  }
};

at::Tensor bns_loss(at::TensorList means, at::TensorList vars, at::TensorList running_means,
                    at::TensorList running_vars) {
  return Loss::apply(means, vars, running_means, running_vars);
}

Gradients bns_loss_backward(const at::Tensor& grad, at::TensorList means, at::TensorList vars,
                            at::TensorList running_means, at::TensorList running_vars) {
  variable_list all = Derivative::apply(grad, means, vars, running_means, running_vars);
  const auto middle = all.begin() + static_cast<int64_t>(means.size());
  return {{all.begin(), middle}, {middle, all.end()}};
}

}  // namespace

TORCH_LIBRARY_IMPL(gdfq, Autograd, m) {
  m.impl("bns_loss", bns_loss);
  m.impl("bns_loss_backward", bns_loss_backward);
}

}  // namespace gdfq
