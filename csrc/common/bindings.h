// Bindings of the kernels, made from their calls: the module includes this file, then every csrc/*/call.h.
//
// Python passes a call as a tuple of its fields. Tensors are read by their method data_ptr(), so torch is not needed to
// compile. Arguments are not checked here: the calling Python does that.
#pragma once
#define FASTGAN_BINDINGS

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <functional>
#include <map>
#include <memory>
#include <new>
#include <string>
#include <type_traits>
#include <vector>

#ifdef FASTGAN_WITH_CPU
#include "common/isa.h"
#endif
#include "common/types.h"

namespace fastgan {

namespace py = pybind11;

// ---- from Python objects to fields ----

inline void read(PyObject* value, int64_t& field) {
    field = PyLong_AsLongLong(value);
    if (field == -1 && PyErr_Occurred()) throw py::error_already_set();
}

inline void read(PyObject* value, double& field) {
    field = PyFloat_AsDouble(value);
    if (field == -1 && PyErr_Occurred()) throw py::error_already_set();
}

inline void read(PyObject* value, bool& field) {
    if (!PyBool_Check(value)) throw py::type_error("a field of a call is no bool");
    field = value == Py_True;
}

inline void read(PyObject* value, const void*& field) {
    if (value == Py_None) return;
    static PyObject* const method = PyUnicode_InternFromString("data_ptr");
    const py::object address = py::reinterpret_steal<py::object>(PyObject_CallMethodNoArgs(value, method));
    if (!address) throw py::error_already_set();
    field = PyLong_AsVoidPtr(address.ptr());
}

inline void read(PyObject* value, void*& field) { read(value, const_cast<const void*&>(field)); }

inline void read(PyObject* value, Dtype& field) {
    static const auto dtypes = [] {
        const py::module_ torch = py::module_::import("torch");
        std::vector<PyObject*> found;
        for (const char* name : {"float32", "bfloat16", "float16", "float64"}) {  // the order of Dtype
            found.push_back(torch.attr(name).ptr());                              // lives as long as torch
        }
        return found;
    }();
    for (size_t i = 0; i < dtypes.size(); ++i) {
        if (value == dtypes[i]) return void(field = Dtype(i));
    }
    throw py::type_error("a field of a call is no dtype that the kernels support");
}

template <class T>
std::enable_if_t<std::is_enum_v<T>> read(PyObject* value, T& field) {
    int i = 0;
    for (const char* name : names(T{})) {
        if (PyUnicode_CompareWithASCIIString(value, name) == 0) return void(field = T(i));
        ++i;
    }
    throw py::value_error("a field of a call has a name that the kernels do not know");
}

template <class Call>
auto read(PyObject* value, Call& call) -> decltype(call.for_each_field(nullptr)) {
    if (!PyTuple_Check(value)) throw py::type_error("a call is no tuple");
    Py_ssize_t i = 0;
    const Py_ssize_t size = PyTuple_GET_SIZE(value);
    call.for_each_field([&](const char*, auto& field) {
        if (i == size) throw py::type_error("a call has too few fields");
        read(PyTuple_GET_ITEM(value, i++), field);
    });
}

// The Python type of a field, for the comparison with kernels/calls.py.
template <class T>
constexpr const char* kind() {
    if constexpr (std::is_same_v<T, bool>) return "bool";
    if constexpr (std::is_same_v<T, int64_t>) return "int";
    if constexpr (std::is_same_v<T, double>) return "float";
    if constexpr (std::is_same_v<T, Dtype>) return "dtype";
    if constexpr (std::is_enum_v<T>) return "str";
    if constexpr (std::is_pointer_v<T>) return "Tensor";
    return "call";
}

// ---- kernels ----

// Workspace of a CPU kernel. Each thread keeps its memory for the next call, since allocation would take longer than a
// small kernel. Memory above `kept` bytes is freed at the next call that needs less.
inline void* scratch(int64_t bytes) {
    constexpr std::align_val_t alignment{64};
    struct Free {
        void operator()(void* memory) const { ::operator delete(memory, alignment); }
    };
    thread_local std::unique_ptr<void, Free> memory;
    thread_local int64_t size = 0;
    constexpr int64_t kept = 16 << 20;
    if (size < bytes || (size > kept && bytes <= kept)) {
        size = 0, memory.reset();  // before the allocation, which may fail
        memory.reset(::operator new(bytes, alignment)), size = bytes;
    }
    return memory.get();
}

struct WithoutGil {
    PyThreadState* state = PyEval_SaveThread();
    ~WithoutGil() { PyEval_RestoreThread(state); }
};

// Fields of every call as "name: type", and the functions of one kind of device by operation and kernel.
using Calls = std::map<std::string, std::vector<std::string>>;
using Kernels = std::map<std::string, std::map<std::string, py::object>>;

struct Module {
    Calls calls;
    Kernels cpu, cuda;
    Kernels cpu_workspace;  // bytes of workspace of a call
};

inline std::vector<std::function<void(Module&)>>& registrations() {
    static std::vector<std::function<void(Module&)>> list;
    return list;
}

inline void add(Kernels& kernels, const std::string& name, const py::object& function) {
    const size_t dot = name.find('.');
    kernels[name.substr(0, dot)][name.substr(dot + 1)] = function;
}

template <class Call>
int64_t no_workspace(const Call&) {
    return 0;
}

// Adds a kernel to the module. Functions that this build lacks are null.
template <class Call>
struct Kernel {
    void (*cpu)(const Call&);
    int64_t (*cpu_workspace)(const Call&);
    void (*cuda)(const Call&, int device, void* stream);
    int64_t (*cuda_workspace)(const Call&);

    void run_on_cpu(py::handle fields) const {
        Call call;
        read(fields.ptr(), call);
        const WithoutGil released;
        call.workspace = scratch(cpu_workspace(call));
        cpu(call);
    }

    // `place` gives (device, stream, workspace or None) for a call and the bytes of its workspace.
    void run_on_gpu(py::handle fields, py::handle place) const {
        Call call;
        read(fields.ptr(), call);
        const py::tuple placed = place(fields, cuda_workspace(call));
        int64_t device, stream;
        read(PyTuple_GET_ITEM(placed.ptr(), 0), device), read(PyTuple_GET_ITEM(placed.ptr(), 1), stream);
        read(PyTuple_GET_ITEM(placed.ptr(), 2), call.workspace);
        const WithoutGil released;
        cuda(call, int(device), reinterpret_cast<void*>(stream));
    }

    Kernel(const char* type, std::vector<std::string> names, decltype(cpu) cpu, decltype(cpu_workspace) cpu_workspace,
           decltype(cuda) cuda, decltype(cuda_workspace) cuda_workspace)
        : cpu(cpu), cpu_workspace(cpu_workspace), cuda(cuda), cuda_workspace(cuda_workspace) {
        registrations().push_back([kernel = *this, type, names](Module& module) {
            auto& fields = module.calls[type] = {};
            Call().for_each_field([&](const char* name, auto& field) {
                fields.push_back(std::string(name) + ": " + kind<std::remove_reference_t<decltype(field)>>());
            });
            for (const std::string& name : names) {
                if (kernel.cpu) {
                    add(module.cpu, name, py::cpp_function([kernel](py::handle call) { kernel.run_on_cpu(call); }));
                    add(module.cpu_workspace, name, py::cpp_function([kernel](py::handle fields) {
                            Call call;
                            read(fields.ptr(), call);
                            return kernel.cpu_workspace(call);
                        }));
                }
                if (kernel.cuda) {
                    const auto run = [kernel](py::handle call, py::handle place) { kernel.run_on_gpu(call, place); };
                    add(module.cuda, name, py::cpp_function(run, py::arg("call"), py::arg("place")));
                }
            }
        });
    }
};

}  // namespace fastgan

#define FASTGAN_CONCAT_(A, B) A##B
#define FASTGAN_CONCAT(A, B) FASTGAN_CONCAT_(A, B)
#define FASTGAN_REGISTER(CALL, ...) \
    static const fastgan::CALL FASTGAN_CONCAT(fastgan_registered_, __COUNTER__){__VA_ARGS__};

#ifdef FASTGAN_WITH_CPU
#define FASTGAN_DECLARE_CPU(R, NAME, CALL) FASTGAN_CPU_ENTRY(R, NAME, const fastgan::CALL&)
#define FASTGAN_CPU(NAME) fastgan::cpu::NAME
namespace fastgan::cpu {
using fastgan::no_workspace;
}
#else
#define FASTGAN_DECLARE_CPU(R, NAME, CALL)
#define FASTGAN_CPU(NAME) nullptr
#endif

#ifdef FASTGAN_WITH_CUDA
#define FASTGAN_DECLARE_GPU(R, NAME, ...) \
    namespace fastgan::cuda {             \
    R NAME(__VA_ARGS__);                  \
    }
#define FASTGAN_GPU(NAME) fastgan::cuda::NAME
namespace fastgan::cuda {
using fastgan::no_workspace;
}
#else
#define FASTGAN_DECLARE_GPU(R, NAME, ...)
#define FASTGAN_GPU(NAME) nullptr
#endif

#define FASTGAN_CPU_WORKSPACE(CALL, NAME) FASTGAN_DECLARE_CPU(int64_t, NAME, CALL)
#define FASTGAN_GPU_WORKSPACE(CALL, NAME) FASTGAN_DECLARE_GPU(int64_t, NAME, const CALL&)
#define FASTGAN_WORKSPACE(CALL, NAME) \
    FASTGAN_CPU_WORKSPACE(CALL, NAME) \
    FASTGAN_GPU_WORKSPACE(CALL, NAME)
#define FASTGAN_KERNEL(CALL, NAME, WORKSPACE, ...)                                                           \
    FASTGAN_DECLARE_CPU(void, NAME, CALL)                                                                    \
    FASTGAN_DECLARE_GPU(void, NAME, const CALL&, int device, void* stream)                                   \
    FASTGAN_REGISTER(Kernel<fastgan::CALL>, #CALL, {__VA_ARGS__}, FASTGAN_CPU(NAME), FASTGAN_CPU(WORKSPACE), \
                     FASTGAN_GPU(NAME), FASTGAN_GPU(WORKSPACE))
#define FASTGAN_CPU_KERNEL(CALL, NAME, WORKSPACE, ...)                                                                \
    FASTGAN_DECLARE_CPU(void, NAME, CALL)                                                                             \
    FASTGAN_REGISTER(Kernel<fastgan::CALL>, #CALL, {__VA_ARGS__}, FASTGAN_CPU(NAME), FASTGAN_CPU(WORKSPACE), nullptr, \
                     nullptr)
#define FASTGAN_GPU_KERNEL(CALL, NAME, WORKSPACE, ...)                                                 \
    FASTGAN_DECLARE_GPU(void, NAME, const CALL&, int device, void* stream)                             \
    FASTGAN_REGISTER(Kernel<fastgan::CALL>, #CALL, {__VA_ARGS__}, nullptr, nullptr, FASTGAN_GPU(NAME), \
                     FASTGAN_GPU(WORKSPACE))
