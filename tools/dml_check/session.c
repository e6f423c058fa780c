/* Keeps an ONNX Runtime session open and computes what it is asked over pipes:
 *
 *     session.exe MODEL.onnx dml|cpu [shared=N] [log=N] [KEY=VALUE]...
 *
 * stdout first says 1 (uint32) when the session is there. A request on stdin and its answer on stdout are a
 * count (uint32) and as many tensors: the length of the name, the name, ONNX's number of the type and the
 * rank (all uint32), the sizes (int64), the elements. The end of stdin ends it.
 *
 * shared   keeps a cache of N positions: each "past_key_values" and its "present" are one buffer on the
 *          device, as onnxruntime-genai has it, and the answer is "logits" alone
 * log      ONNX Runtime's least severity, 0 for everything; to stderr
 * others   entries of the session's configuration
 *
 * A failure is a line on stderr, "FAILED STEP: words" or "CRASHED STEP: code".
 */

#define WIN32_LEAN_AND_MEAN
#include <windows.h>
#include <fcntl.h>
#include <io.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "onnxruntime_c_api.h"

enum { MAX_TENSORS = 1024, MAX_DIMS = 8, MAX_NAME = 256, MAX_PATH_LETTERS = 1024, API_VERSION = 21 };

typedef struct {
    char name[MAX_NAME];
    void* elements;
    OrtValue* value;
} Tensor;

static const OrtApi* api;
static const char* step = "start";

static void fail(const char* words) {
    fprintf(stderr, "FAILED %s: %s\n", step, words);
    fflush(stderr);
    ExitProcess(1);
}

static void check(OrtStatus* status) {
    if (status)
        fail(api->GetErrorMessage(status));
}

static LONG WINAPI crashed(EXCEPTION_POINTERS* exception) {
    fprintf(stderr, "CRASHED %s: 0x%08lx\n", step, exception->ExceptionRecord->ExceptionCode);
    fflush(stderr);
    ExitProcess(3);
}

static void get(void* bytes, size_t count) {
    if (count && fread(bytes, 1, count, stdin) != count)
        ExitProcess(0);
}

static void put(const void* bytes, size_t count) {
    fwrite(bytes, 1, count, stdout);
}

static void put_number(uint32_t number) {
    put(&number, sizeof number);
}

static uint32_t get_number(void) {
    uint32_t number;
    get(&number, sizeof number);
    return number;
}

static size_t element_size(uint32_t type) {
    switch (type) {
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT:
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_INT32:
        return 4;
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64:
        return 8;
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16:
        return 2;
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8:
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_INT8:
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_BOOL:
        return 1;
    default:
        fail("a tensor has a type that this program does not know");
        return 0;
    }
}

static void get_tensor(Tensor* tensor, const OrtMemoryInfo* host) {
    int64_t sizes[MAX_DIMS];
    const uint32_t letters = get_number();
    if (letters >= MAX_NAME)
        fail("a name is too long");
    get(tensor->name, letters);
    tensor->name[letters] = '\0';
    const uint32_t type = get_number();
    const uint32_t rank = get_number();
    if (rank > MAX_DIMS)
        fail("a tensor has too many dimensions");
    get(sizes, rank * sizeof *sizes);
    size_t bytes = element_size(type);
    for (uint32_t i = 0; i < rank; ++i)
        bytes *= (size_t)sizes[i];
    tensor->elements = malloc(bytes + 1);
    if (!tensor->elements)
        fail("no memory");
    get(tensor->elements, bytes);
    check(api->CreateTensorWithDataAsOrtValue(host, tensor->elements, bytes, sizes, rank,
                                              (ONNXTensorElementDataType)type, &tensor->value));
}

static void put_tensor(const char* name, OrtValue* value) {
    OrtTensorTypeAndShapeInfo* info;
    ONNXTensorElementDataType type;
    int64_t sizes[MAX_DIMS];
    size_t rank, count;
    void* elements;
    check(api->GetTensorTypeAndShape(value, &info));
    check(api->GetTensorElementType(info, &type));
    check(api->GetDimensionsCount(info, &rank));
    if (rank > MAX_DIMS)
        fail("a tensor has too many dimensions");
    check(api->GetDimensions(info, sizes, rank));
    check(api->GetTensorShapeElementCount(info, &count));
    check(api->GetTensorMutableData(value, &elements));
    put_number((uint32_t)strlen(name));
    put(name, strlen(name));
    put_number((uint32_t)type);
    put_number((uint32_t)rank);
    put(sizes, rank * sizeof *sizes);
    put(elements, count * element_size((uint32_t)type));
    api->ReleaseTensorTypeAndShapeInfo(info);
}

static void wide(const char* text, wchar_t* letters) {
    if (!MultiByteToWideChar(CP_UTF8, 0, text, -1, letters, MAX_PATH_LETTERS))
        fail("a path is too long");
}

/* The cache, bound once as what is read and as what is written. */
static void bind_cache(OrtSession* session, OrtIoBinding* binding, OrtAllocator* host, OrtAllocator* device,
                       int64_t positions) {
    const char* past = "past_key_values";
    size_t count;
    check(api->SessionGetInputCount(session, &count));
    for (size_t i = 0; i < count; ++i) {
        char *name, present[MAX_NAME];
        OrtTypeInfo* type_info;
        const OrtTensorTypeAndShapeInfo* info;
        ONNXTensorElementDataType type;
        int64_t sizes[4];
        OrtValue* buffer;
        check(api->SessionGetInputName(session, i, host, &name));
        if (strncmp(name, past, strlen(past)) != 0)
            continue;
        check(api->SessionGetInputTypeInfo(session, i, &type_info));
        check(api->CastTypeInfoToTensorInfo(type_info, &info));
        check(api->GetTensorElementType(info, &type));
        check(api->GetDimensions(info, sizes, 4));
        sizes[0] = 1;
        sizes[2] = positions;
        check(api->CreateTensorAsOrtValue(device, sizes, 4, type, &buffer));
        snprintf(present, sizeof present, "present%s", name + strlen(past));
        check(api->BindInput(binding, name, buffer));
        check(api->BindOutput(binding, present, buffer));
        api->ReleaseTypeInfo(type_info);
    }
}

int main(int argc, char** argv) {
    static wchar_t path[MAX_PATH_LETTERS];
    static Tensor inputs[MAX_TENSORS];
    static const char* input_names[MAX_TENSORS];
    static const OrtValue* input_values[MAX_TENSORS];
    static char* output_names[MAX_TENSORS];
    static OrtValue* outputs[MAX_TENSORS];
    OrtLoggingLevel severity = ORT_LOGGING_LEVEL_WARNING;
    int64_t positions = 0;
    OrtEnv* environment;
    OrtSessionOptions* options;
    OrtSession* session;
    OrtAllocator *host_allocator, *device_allocator;
    OrtMemoryInfo *host, *device;
    OrtIoBinding* binding = NULL;
    size_t output_count;

    SetUnhandledExceptionFilter(crashed);
    if (argc < 3) {
        fprintf(stderr, "usage: session.exe MODEL.onnx dml|cpu [shared=N] [log=N] [KEY=VALUE]...\n");
        return 2;
    }
    const int on_directml = strcmp(argv[2], "dml") == 0;
    _setmode(_fileno(stdin), _O_BINARY);
    _setmode(_fileno(stdout), _O_BINARY);
    api = OrtGetApiBase()->GetApi(API_VERSION);
    check(api->CreateSessionOptions(&options));
    for (int i = 3; i < argc; ++i) {
        char* equals = strchr(argv[i], '=');
        if (!equals)
            fail("an argument is not KEY=VALUE");
        *equals = '\0';
        if (strcmp(argv[i], "shared") == 0)
            positions = atoll(equals + 1);
        else if (strcmp(argv[i], "log") == 0)
            severity = (OrtLoggingLevel)atoi(equals + 1);
        else
            check(api->AddSessionConfigEntry(options, argv[i], equals + 1));
    }
    check(api->CreateEnv(severity, "dml_check", &environment));
    if (on_directml) {
        /* Without a number, the provider looks for devices with dxcore.dll, which older Wine lacks. */
        const char *keys[] = {"device_id"}, *values[] = {"0"};
        step = "provider";
        check(api->DisableMemPattern(options));
        check(api->SetSessionExecutionMode(options, ORT_SEQUENTIAL));
        check(api->SessionOptionsAppendExecutionProvider(options, "DML", keys, values, 1));
    }
    step = "session";
    wide(argv[1], path);
    check(api->CreateSession(environment, path, options, &session));
    check(api->GetAllocatorWithDefaultOptions(&host_allocator));
    check(api->CreateCpuMemoryInfo(OrtArenaAllocator, OrtMemTypeDefault, &host));
    check(api->SessionGetOutputCount(session, &output_count));
    if (output_count > MAX_TENSORS)
        fail("the model has too many outputs");
    for (size_t i = 0; i < output_count; ++i)
        check(api->SessionGetOutputName(session, i, host_allocator, &output_names[i]));
    if (positions) {
        step = "cache";
        check(api->CreateIoBinding(session, &binding));
        device = host;
        if (on_directml)
            check(api->CreateMemoryInfo("DML", OrtDeviceAllocator, 0, OrtMemTypeDefault, &device));
        check(api->CreateAllocator(session, device, &device_allocator));
        bind_cache(session, binding, host_allocator, device_allocator, positions);
        output_count = 1;
    }
    put_number(1);
    fflush(stdout);

    for (;;) {
        step = "request";
        const uint32_t count = get_number();
        if (count > MAX_TENSORS)
            fail("the request has too many tensors");
        for (uint32_t i = 0; i < count; ++i) {
            get_tensor(&inputs[i], host);
            input_names[i] = inputs[i].name;
            input_values[i] = inputs[i].value;
        }
        step = "run";
        put_number((uint32_t)output_count);
        if (binding) {
            OrtValue** bound;
            char* names;
            size_t *lengths, bound_count;
            for (uint32_t i = 0; i < count; ++i)
                check(api->BindInput(binding, input_names[i], input_values[i]));
            /* Each time anew: else these go where the last scores are, whatever their size. */
            check(api->BindOutputToDevice(binding, "logits", host));
            check(api->RunWithBinding(session, NULL, binding));
            check(api->GetBoundOutputValues(binding, host_allocator, &bound, &bound_count));
            check(api->GetBoundOutputNames(binding, host_allocator, &names, &lengths, &bound_count));
            const char* name = names;
            for (size_t i = 0; i < bound_count; name += lengths[i++])
                if (lengths[i] == strlen("logits") && strncmp(name, "logits", lengths[i]) == 0)
                    put_tensor("logits", bound[i]);
            for (size_t i = 0; i < bound_count; ++i)
                api->ReleaseValue(bound[i]);
        } else {
            memset(outputs, 0, sizeof outputs);
            check(api->Run(session, NULL, input_names, input_values, count, (const char* const*)output_names,
                           output_count, outputs));
            for (size_t i = 0; i < output_count; ++i) {
                put_tensor(output_names[i], outputs[i]);
                api->ReleaseValue(outputs[i]);
            }
        }
        fflush(stdout);
        for (uint32_t i = 0; i < count; ++i) {
            api->ReleaseValue(inputs[i].value);
            free(inputs[i].elements);
        }
    }
}
