// Everything for one instruction set; compiled once for each, with ISA_NAME as its name and ISA as its namespace.
#include "network.hpp"

#define NAME_OF(isa) #isa
#define STRING_OF(isa) NAME_OF(isa)

template <class T>
static constexpr Kernels<T> kernels() {
    return {ISA::forward<T>,  ISA::input_gradient<T>,    ISA::weight_gradient<T>, ISA::max_pool<T>,
            ISA::max_pool_gradient<T>, ISA::avg_pool<T>, ISA::avg_pool_gradient<T>,
            ISA::network_kept<T>, ISA::network_forward<T>, ISA::network_gradients<T>, ISA::activation_gradient<T>};
}

extern const InstructionSet ISA_NAME;
const InstructionSet ISA_NAME = {STRING_OF(ISA_NAME), kernels<float>(), kernels<double>()};
