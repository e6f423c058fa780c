/* Compiles an OpenVINO model for an NPU and exports the blob:
 *
 *     compile.exe MODEL.xml OUT.blob KEY=VALUE...
 *
 * The answer is one line of JSON on stdout; what OpenVINO and the compiler log goes to stderr.
 * A Windows program, because only the Windows wheel of openvino carries the compiler.
 */

#define WIN32_LEAN_AND_MEAN
#include <windows.h>
#include <psapi.h>
#include <stdio.h>
#include <string.h>

#include "openvino/c/openvino.h"

enum { MAX_PROPERTIES = 16 };

static void print_json_text(const char* text) {
    putchar('"');
    for (; *text; ++text) {
        const unsigned char byte = (unsigned char)*text;
        if (byte == '"' || byte == '\\')
            printf("\\%c", byte);
        else if (byte < 0x20)
            printf("\\u%04x", byte);
        else
            putchar(byte);
    }
    putchar('"');
}

/* What is being done, for the words of a crash. */
static const char* step = "start";

static int fail(void) {
    const char* words = ov_get_last_err_msg();
    printf("{\"failed\": \"%s\", \"words\": ", step);
    print_json_text(words ? words : "");
    printf("}\n");
    return 1;
}

static LONG WINAPI crashed(EXCEPTION_POINTERS* exception) {
    printf("{\"failed\": \"%s\", \"crash\": \"0x%08lx\"}\n", step, exception->ExceptionRecord->ExceptionCode);
    fflush(stdout);
    ExitProcess(3);
}

static double peak_bytes(void) {
    PROCESS_MEMORY_COUNTERS counters = {.cb = sizeof counters};
    GetProcessMemoryInfo(GetCurrentProcess(), &counters, sizeof counters);
    return (double)counters.PeakWorkingSetSize;
}

int main(int argc, char** argv) {
    const char* pairs[2 * MAX_PROPERTIES] = {0};
    ov_core_t* core = NULL;
    ov_model_t* model = NULL;
    ov_compiled_model_t* compiled = NULL;

    if (argc < 3 || argc - 3 > MAX_PROPERTIES) {
        fprintf(stderr, "usage: compile.exe MODEL.xml OUT.blob KEY=VALUE... (at most %d)\n", MAX_PROPERTIES);
        return 2;
    }
    for (int i = 3; i < argc; ++i) {
        char* equals = strchr(argv[i], '=');
        if (!equals) {
            fprintf(stderr, "%s is not KEY=VALUE\n", argv[i]);
            return 2;
        }
        *equals = '\0';
        pairs[2 * (i - 3)] = argv[i];
        pairs[2 * (i - 3) + 1] = equals + 1;
    }

    SetUnhandledExceptionFilter(crashed);
    if (ov_core_create(&core) != OK)
        return fail();
    step = "read";
    if (ov_core_read_model(core, argv[1], NULL, &model) != OK)
        return fail();
    step = "compile";
    const ULONGLONG start_ms = GetTickCount64();
    /* It reads as many of the arguments as the count says. */
    if (ov_core_compile_model(core, model, "NPU", 2 * (size_t)(argc - 3), &compiled,
                              pairs[0], pairs[1], pairs[2], pairs[3], pairs[4], pairs[5], pairs[6], pairs[7],
                              pairs[8], pairs[9], pairs[10], pairs[11], pairs[12], pairs[13], pairs[14],
                              pairs[15], pairs[16], pairs[17], pairs[18], pairs[19], pairs[20], pairs[21],
                              pairs[22], pairs[23], pairs[24], pairs[25], pairs[26], pairs[27], pairs[28],
                              pairs[29], pairs[30], pairs[31]) != OK)
        return fail();
    step = "export";
    if (ov_compiled_model_export_model(compiled, argv[2]) != OK)
        return fail();
    printf("{\"compile_s\": %.1f, \"peak_bytes\": %.0f}\n", (double)(GetTickCount64() - start_ms) / 1000.0,
           peak_bytes());
    fflush(stdout);
    /* Unloading the compiler gives nothing back that the end of the process does not. */
    ExitProcess(0);
}
